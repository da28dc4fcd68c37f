"""Exported files: written, opened, and compared with the network that they hold."""

import contextlib
import importlib
import io
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kd_plugins.errors import UserError
from kd_plugins.export.network import Exportable
from kd_plugins.utils.files import check_writable

FORMATS = ('.onnx', '.pt2')
TOLERANCE = 1e-4  # of the largest value that an output has


class Runtime:
    """An exported file, ready to run on this CPU: images in, tensors out.

    ``.onnx`` runs in onnxruntime, with as many threads as torch has, and ``.pt2`` in torch.

    Args:
        path: The file.
        suffix: Its format, where the name does not end in it.

    Attributes:
        metadata: What :meth:`Exportable.metadata` has stated.
    """

    def __init__(self, path: str | Path, suffix: str = '') -> None:
        self._session: Any = None
        if (suffix or Path(path).suffix) == '.onnx':
            onnxruntime = optional('onnxruntime')
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
            self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        else:
            extra = {'metadata.json': ''}
            with _silent():
                self._module = torch.export.load(io.BytesIO(Path(path).read_bytes()), extra_files=extra).module()
            self.metadata = json.loads(extra['metadata.json'])

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the outputs for a batch of images."""
        try:
            if self._session is None:
                return [*self._module(images)]
            return [torch.from_numpy(x) for x in self._session.run(None, {'images': images.numpy()})]
        except Exception as error:  # a guard of torch.export on the size, or one of onnxruntime's own kinds
            raise UserError(
                f'the file does not take images {tuple(images.shape)}: {_line(error)}; export with the --size of the '
                "test images, larger than a detector's coarsest stride; a segmentor's of several sizes become one by "
                "--cfg-options 'model.data_preprocessor.test_cfg.size=(HEIGHT,WIDTH)'"
            ) from error


def optional(package: str) -> Any:
    """Import a package of the extra ``export``.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f'export to .onnx needs {error.name}, which is not installed: pip install onnx onnxscript onnxruntime, the '
            'extra export of this package, or export to .pt2'
        ) from error


def check_target(path: Path) -> None:
    """Check, before anything is built, that a file of this name can be made.

    Raises:
        UserError: Its format is unknown, a package is missing that makes it, or its folder cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UserError(f'--to {path}: expected a file ending in {" or ".join(FORMATS)}')
    if path.suffix == '.onnx':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            optional(package)
    check_writable('--to', path)


def run_once(network: Exportable, images: Tensor) -> None:
    """Run a network on images, which names its outputs.

    Raises:
        UserError: A layer fails.
    """
    try:
        with torch.no_grad():
            network(images)
    except UserError:
        raise
    except Exception as error:  # of any layer
        raise UserError(
            f'{_layer_at_work(error, network)} fails on images {tuple(images.shape)}: {_line(error)}; see that '
            'tools/test.py runs the model, and give --size as it is used'
        ) from error


def write(network: Exportable, images: Tensor, path: str | Path, suffix: str, metadata: Mapping[str, str]) -> None:
    """Write a network to a file.

    The axis of the batch varies, and where ``network.dynamic_size`` says so those of height and width.

    Args:
        network: The network, on a CPU.
        images: A batch of at least two images, as the network takes them.
        path: The file.
        suffix: Its format.
        metadata: Texts to write beside the network.

    Raises:
        UserError: A layer does not export.
    """
    dynamic = torch.export.Dim.DYNAMIC
    if network.dynamic_size:  # an axis of length 1, of the coarsest level, would be taken for one that does not vary
        height, width = (max(256, side) for side in images.shape[2:])
        images = pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
    axes = {0: dynamic, **(dict.fromkeys((2, 3), dynamic) if network.dynamic_size else {})}
    with torch.no_grad(), _silent():
        try:
            program = torch.export.export(network, (images,), dynamic_shapes=(axes,))
        except Exception as error:  # of any layer, or of torch about it
            layer = _layer_at_work(error, network)
            raise UserError(
                f'{layer} does not export: {_line(error)}; replace it, or export a part without it'
            ) from error
        if suffix == '.pt2':
            with io.BytesIO() as buffer:
                torch.export.save(program, buffer, extra_files={'metadata.json': json.dumps(metadata)})
                Path(path).write_bytes(buffer.getvalue())
            return
        _drop_idle_casts(program.graph)
        try:
            converted: Any = torch.onnx.export(
                program, dynamo=True, input_names=['images'], output_names=network.names, verbose=False
            )
        except Exception as error:  # of the converter
            operator, layer = _unsupported(error, program)
            raise UserError(
                f'{layer} does not export: ONNX has nothing for {operator}; replace the layer, or export to .pt2'
            ) from error
    model = converted.model_proto
    _name_axes(model, axes)
    optional('onnx').helper.set_model_props(model, dict(metadata))
    Path(path).write_bytes(model.SerializeToString())


def _drop_idle_casts(graph: torch.fx.Graph) -> None:
    """Drop ``type_as`` between equal types: torch's converter gives the buffer before it another name, and fails."""
    for node in graph.find_nodes(op='call_function', target=torch.ops.aten.type_as.default):
        source, like = node.args
        if source.meta['val'].dtype == like.meta['val'].dtype:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _name_axes(model: Any, axes: Sequence[int] | Mapping[int, Any]) -> None:
    """Name the axes that vary in an ONNX model: ``batch``, ``height``, ``width``."""
    shape = model.graph.input[0].type.tensor_type.shape.dim
    named = {shape[axis].dim_param: name for axis, name in zip(axes, ('batch', 'height', 'width'), strict=False)}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r'\bs\d+\b', lambda found: named.get(found[0], found[0]), size.dim_param)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide what the converters say on their way: deprecations in them, progress, and graphs beside an error."""
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, disabled)
        logging.disable(logging.ERROR)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore')
        yield


def _line(error: BaseException) -> str:
    """Return the first line of an error, with its kind."""
    return f'{type(error).__name__}: {" ".join(str(error).strip().splitlines()[:1])[:200]}'


def _name_of(name: str, kind: str) -> str:
    return f'layer {name.removeprefix("network.")} ({kind.rpartition(".")[2]})'


def _layer_at_work(error: BaseException, network: nn.Module) -> str:
    """Return the innermost layer that ran when an error was raised."""
    names, found = {id(module): name for name, module in network.named_modules()}, 'the network'
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get('self')
        if name := names.get(id(owner)):
            found = _name_of(name, type(owner).__name__)
        trace = trace.tb_next
    return found


def _unsupported(error: BaseException, program: Any) -> tuple[str, str]:
    """Return the operator that a converter lacks, and the first layer that calls it."""
    cause: BaseException | None = error
    lacking = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
    while cause is not None and not (found := lacking.search(str(cause))):
        cause = cause.__cause__
    if found is None:
        return _line(error.__cause__ or error), 'the network'
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.op == 'call_function' and str(node.target).startswith(f'{found[1]}.'):
                *_, (name, kind) = node.meta.get('nn_module_stack', {'': ('', 'the network')}).values()
                return found[1], _name_of(name, str(kind))
    return found[1], 'the network'


class Parity(NamedTuple):
    """The largest difference between a file and its network.

    Attributes:
        difference: Largest difference, as a part of the largest value of that output.
        output: Name of the output.
        batch: Size of the batch.
    """

    difference: float
    output: str
    batch: int


def compare(network: Exportable, runtime: Runtime, images: Tensor, batches: Sequence[int] = (1, 7)) -> Parity:
    """Run a file and its network on the same images, and return the largest difference.

    Args:
        network: The network, which says how its outputs are compared.
        runtime: The file.
        images: Images as the network takes them, as many as the largest batch.
        batches: Sizes of the batches.

    Raises:
        UserError: A difference is above :data:`TOLERANCE`, or not finite.
    """
    found = []
    for batch in batches:
        with torch.no_grad():
            expected = network.expected(images[:batch])
        outputs = runtime(images[:batch])
        for name, own, other in zip(network.names, expected, outputs, strict=True):
            if not own.isfinite().all():
                raise UserError(
                    f"output '{name}' is not finite in torch: no file is left, since none can be compared; export the "
                    'checkpoint of a training that has not diverged'
                )
            if own.shape != other.shape:
                raise UserError(
                    f"parity missed at output '{name}', batch {batch}: shape {tuple(other.shape)}, in torch "
                    f'{tuple(own.shape)}; export with --size as the network is used'
                )
        found += [Parity(value, name, batch) for name, value in network.differences(expected, outputs)]
    largest = max(found, key=lambda x: math.inf if math.isnan(x.difference) else x.difference)
    if not largest.difference <= TOLERANCE:
        raise UserError(
            f"parity missed: the file's output '{largest.output}' differs from torch's by {largest.difference:.2g} of "
            f'its largest value in a batch of {largest.batch}, expected at most {TOLERANCE:g}; no file is left: export '
            'in the other format, and report the network'
        )
    return largest
