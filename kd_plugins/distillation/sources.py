"""Where a teacher comes from: its network, its weights, and the normalisation that it expects."""

import copy
import importlib
import inspect
import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import mmengine
import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from torch import Tensor, nn

from kd_plugins.checkpoint import download, load_exactly, may_run_pickles, read_weights, renamed
from kd_plugins.distillation.teacher import RGBImages
from kd_plugins.errors import UserError
from kd_plugins.pretrained import check_pretrained, check_readable
from kd_plugins.registry import MODELS, check_arguments, type_name
from kd_plugins.utils.names import brief, first, nearest
from kd_plugins.utils.packages import packaged_config

_REQUIRED: Any = object()  # config= has to say checkpoint=None: few of those networks load weights themselves
# Mean and std of RGB pixels of 0 to 255; and whether the network takes BGR, where it does.
Statistics = tuple[Sequence[float], Sequence[float]] | tuple[Sequence[float], Sequence[float], bool]
Weights = OrderedDict[str, Tensor] | str | None  # read from a checkpoint; a name of the library's own; or random


def source_and_options(teacher: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a teacher's config dict in two parts: arguments of :func:`build_teacher`, and options of ``Teacher``."""
    options = {name: teacher[name] for name in ('cache', 'bf16', 'size') if name in teacher}
    return {name: value for name, value in teacher.items() if name not in options}, options


def build_teacher(
    config: str | Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = _REQUIRED,
    data_preprocessor: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    *,
    timm: str | None = None,
    torchvision: str | None = None,
    huggingface: str | None = None,
    build: str | Mapping[str, Any] | None = None,
    weights: str | None = 'DEFAULT',
    revise_keys: Sequence[tuple[str, str]] = (),
) -> nn.Module:
    """Build a teacher's network from one source, and load its weights.

    =============== ====================================================================================================
    source          the network
    =============== ====================================================================================================
    ``config``      Path of a config, ``package::path`` of a stock one (``mmpretrain::resnet/resnet101_8xb32_in1k.py``,
                    also one without a head, ``mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py``), or the config
                    dict of a model or of a bare backbone (``dict(type='mmpretrain.MobileNetV2', out_indices=(7,))``).
                    Of a model that distils, the student. Needs ``checkpoint``.
    ``timm``        Name in timm, with the tag of its weights: ``'vit_small_patch14_dinov2.lvd142m'``.
    ``torchvision`` Name in torchvision: ``'resnet50'``.
    ``huggingface`` Name of a model on the Hugging Face hub or its folder: ``'facebook/dinov2-small'``. A classifier of
                    images with its head (``'microsoft/resnet-50'``), any other network without; of a model of images
                    and text, the part for images.
    ``build``       A function that returns any ``nn.Module``: ``'module:function'``, ``'path/of/file.py:function'`` or,
                    with arguments, ``dict(function='torch.hub:load', repo_or_dir='...', model='...')``.
    =============== ====================================================================================================

    Each states its normalisation itself, but for ``build`` and a bare backbone; the student's batch is converted to it.
    The other libraries' networks take RGB images, unless a processor of transformers says BGR. A network with
    ``to_rgb=False`` is taken to see BGR, unless its mean, more red than blue, is that of a data set of RGB images
    (CIFAR); two that convert, or two that do not, see the same.

    Args:
        config: See the table, as ``timm``, ``torchvision``, ``huggingface`` and ``build``; exactly one is given.
        checkpoint: File or address of the weights, ``.pth`` or ``.safetensors``. With ``None``, a config's parts load
            those of their ``init_cfg`` (parameters that stay random are logged), and the other libraries their own,
            which they download once.
        data_preprocessor: Config dict of the preprocessor that the network was trained with, in place of its own:
            ``dict(mean=..., std=..., to_rgb=True)``. One without mean and std means raw pixels; an empty one means the
            student's batch as it is.
        allow_pickle: Whether to run the code in a pickled checkpoint; only for files that you trust.
        weights: The library's own weights, where there is no checkpoint: ``'DEFAULT'``; of torchvision a name as
            ``'IMAGENET1K_V1'``; or ``None`` for random ones.
        revise_keys: Pairs (pattern, replacement) of regular expressions for the names in the checkpoint, as
            mmengine's loaders have: ``[(r'^backbone\\.', '')]``.

    Raises:
        UserError: None or several sources are given; a network, a library or weights are missing; or the weights do not
            fit the network.
    """
    sources = dict(config=config, timm=timm, torchvision=torchvision, huggingface=huggingface, build=build)
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f'a teacher comes from exactly one of {", ".join(f"{name}=" for name in sources)}, '
            f'got {" and ".join(given) or "none"}'
        )
    source = given[0]
    if checkpoint is _REQUIRED:
        if source == 'config':
            raise UserError("the teacher needs the option 'checkpoint': give its file, or None")
        checkpoint = None
    if not isinstance(checkpoint, (str, Path, type(None))):
        raise UserError(f"a teacher's checkpoint must be a path, an address or None, got {checkpoint!r}")
    if data_preprocessor is not None and not isinstance(data_preprocessor, Mapping):
        raise UserError(f"a teacher's data_preprocessor must be a config dict, got {brief(data_preprocessor)}")
    if weights != 'DEFAULT' and source in ('config', 'build'):
        raise UserError(
            f'weights={weights!r} is for timm=, torchvision= and huggingface=: with {source}= give checkpoint='
        )
    if weights not in ('DEFAULT', None) and source != 'torchvision':
        raise UserError(f"weights= beside {source}= must be 'DEFAULT' or None (random), got {weights!r}")
    if source not in ('config', 'build') and not isinstance(sources[source], str):
        raise UserError(f'{source}= must be a name, got {sources[source]!r}')
    if revise_keys and checkpoint is None:
        raise UserError('revise_keys= renames what checkpoint= holds, but there is no checkpoint=')
    read = None if checkpoint is None else renamed(read_weights(checkpoint, '', allow_pickle), revise_keys)
    file, statistics = checkpoint or '', None
    if timm is not None:
        network, statistics = _from_timm(timm, read or weights, file)
    elif torchvision is not None:
        network, statistics = _from_torchvision(torchvision, read or weights, file)
    elif huggingface is not None:
        network, statistics = _from_huggingface(huggingface, read or weights, file, allow_pickle)
    elif build is not None:
        network = _from_function(build)
    else:
        network = build_network(config, data_preprocessor)
        if read is None:
            _initialise(network)
    if config is None:
        _add_preprocessor(network, statistics, data_preprocessor)
        if read is None and weights is None:
            _warn(f"the teacher {source}='{sources[source]}' has random weights, as weights=None says")
    if read is not None and (config or build):  # the other libraries have loaded them
        load_exactly(network, read, file)
    return network


def build_network(
    config: str | Mapping[str, Any] | None,
    data_preprocessor: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network from a config, without loading weights; see :func:`build_teacher`.

    Raises:
        UserError: The config is missing.
    """
    scope = None
    if isinstance(config, str):
        try:
            path = packaged_config(config) or config
        except UserError as error:
            raise UserError(f'teacher {error}') from error
        try:
            file = mmengine.Config.fromfile(str(path))
        except FileNotFoundError as error:
            raise UserError(f'teacher config {config} does not exist: give a path or package::path') from error
        except Exception as error:  # from the config's code, or from mmengine about the package
            raise UserError(
                f'teacher config {config}: {type(error).__name__}: {error}; give a path or package::path'
            ) from error
        if 'model' not in file:
            raise UserError(f'the teacher config {file.filename} has no model: give the config of a whole network')
        # Stock configs without a head have no default_scope.
        scope = file.get('default_scope') or (config.partition('::')[0] if '::' in config else None)
        model = file.model
        model.setdefault('data_preprocessor', file.get('data_preprocessor'))
    elif isinstance(config, Mapping) and 'type' in config:
        model = config
    else:
        raise UserError(
            "a teacher's config must be a path, package::path, or a model's config dict with a 'type', got "
            f'{brief(config)}'
        )
    model = copy.deepcopy(dict(student_of(model)))  # mmdet modifies config dicts while building
    if data_preprocessor is not None:
        model['data_preprocessor'] = data_preprocessor or None
    with MODELS.switch_scope_and_registry(model.get('_scope_') or scope) as registry:
        class_ = registry.get(model['type']) if isinstance(model['type'], str) else model['type']
        own = None
        bare = inspect.isclass(class_) and not issubclass(class_, BaseModel)
        if bare:  # a backbone: it takes no data_preprocessor
            own = model.pop('data_preprocessor', None)
        network = registry.build(model)
    if bare:
        _add_preprocessor(network, None, own if data_preprocessor is None else data_preprocessor)
    elif model.get('data_preprocessor') is None and hasattr(network, 'data_preprocessor'):
        network.data_preprocessor = BaseDataPreprocessor()  # mmpretrain's default would mean raw pixels
        if data_preprocessor is None:
            _warn_of_unknown_normalisation()
    return network


def student_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config dict of the student alone, where a model holds it together with other networks."""
    while type_name(model) in ('Distiller', 'MutualLearning', 'NativeEnsemble'):
        model = {'data_preprocessor': model.get('data_preprocessor')} | dict(model['student'])
    return model


def _from_timm(name: str, weights: Weights, checkpoint: str | Path) -> tuple[nn.Module, Statistics]:
    timm = _optional('timm', 'timm')
    registered = ':' not in name  # neither hf-hub: nor local-dir:
    if registered and name not in (known := {*timm.list_models(), *timm.list_pretrained()}):
        raise UserError(f"timm has no model '{name}'; {nearest(name, sorted(known))}")

    def create(**options: Any) -> nn.Module:
        try:
            # Vision transformers then resize their position tables to the images.
            return timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError as error:
            if 'dynamic_img_size' not in str(error):
                raise
            return timm.create_model(name, **options)

    try:
        with _quiet('huggingface_hub'), _no_pickle():
            if isinstance(weights, OrderedDict):  # timm renames what files of the networks' authors hold
                network = create(pretrained=True, pretrained_cfg_overlay=dict(state_dict=weights, source=''))
            else:
                network = create(pretrained=weights is not None)
    except Exception as error:  # of the network, the hub or the files
        if not isinstance(weights, OrderedDict):
            where = _address(timm.get_pretrained_cfg(name)) if registered else 'its model.safetensors'
            raise UserError(
                f"timm='{name}' cannot be loaded ({_line(error)}): fetch {where} and give its path as checkpoint=, or "
                'weights=None for random ones'
            ) from error
        network = create()
        load_exactly(network, weights, checkpoint)  # its message is clearer than timm's
    about: Any = network.pretrained_cfg
    about.pop('state_dict', None)
    return network, ([255 * x for x in about['mean']], [255 * x for x in about['std']])


def _address(about: Any) -> str:
    """Return where the weights of timm's configuration ``about`` are."""
    if about is None or not about.hf_hub_id:
        return (about and about.url) or 'weights of it elsewhere (timm has none)'
    return f'https://huggingface.co/{about.hf_hub_id}/resolve/main/{about.hf_hub_filename or "model.safetensors"}'


def _from_torchvision(name: str, weights: Weights, checkpoint: str | Path) -> tuple[nn.Module, Statistics]:
    from torchvision import models

    if name not in models.list_models():
        raise UserError(f"torchvision has no model '{name}'; {nearest(name, models.list_models())}")
    known = models.get_model_weights(name)
    given = weights if isinstance(weights, OrderedDict) else None
    if isinstance(weights, str) and weights not in ('DEFAULT', *known.__members__):
        raise UserError(f"torchvision='{name}' has no weights '{weights}': give one of {', '.join(known.__members__)}")
    chosen = None if weights is None else known[weights if isinstance(weights, str) else 'DEFAULT']
    options: dict[str, Any] = {}
    if 'weights_backbone' in inspect.signature(models.get_model_builder(name)).parameters:
        options['weights_backbone'] = None  # else downloaded, too
    if given is None:
        if chosen is not None:
            try:
                download(chosen.url, check_hash=True)  # to where torchvision looks for it
            except UserError as error:
                raise UserError(
                    f"torchvision='{name}': {error} as checkpoint=, or weights=None for random ones"
                ) from error
        with _no_pickle():
            network = models.get_model(name, weights=chosen, **options)
    else:
        try:
            # torchvision renames what its older files hold, and builds some networks otherwise for weights (Inception
            # with transform_input, segmentation with aux_classifier).
            with mock.patch.object(known, 'get_state_dict', return_value=copy.copy(given)):
                network = models.get_model(name, weights=chosen, **options)
        except Exception:  # the weights are those of a network without all this, or do not fit
            network = models.get_model(name, weights=None, **options)
            load_exactly(network, given, checkpoint)
    transforms = (chosen or known['DEFAULT']).transforms()
    # Those of detectors convert to 0..1 and leave the rest to the network.
    mean, std = getattr(transforms, 'mean', [0.0] * 3), getattr(transforms, 'std', [1.0] * 3)
    return network, ([255 * x for x in mean], [255 * x for x in std])


def _from_huggingface(
    name: str, weights: Weights, checkpoint: str | Path, allow_pickle: bool
) -> tuple[nn.Module, Statistics | None]:
    transformers = _optional('transformers', 'huggingface')
    folder = Path(name).expanduser()
    name = str(folder) if folder.is_dir() else name
    what, report = checkpoint or f"huggingface='{name}'", {}
    try:
        with _quiet('huggingface_hub', 'transformers', bars=not folder.is_dir()):
            settings = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            saved = next(iter(settings.architectures or ()), '')
            if 'ForImageClassification' in saved and hasattr(transformers, saved):
                class_ = getattr(transformers, saved)
            else:
                with torch.device('meta'):  # AutoModel itself takes no weights without a folder
                    class_ = type(transformers.AutoModel.from_config(settings, trust_remote_code=False))
            if weights is None:
                network = class_(settings)
            else:
                given = isinstance(weights, OrderedDict)
                network, report = class_.from_pretrained(
                    None if given else name,
                    config=settings,
                    state_dict=weights if given else None,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are in the report
                    weights_only=not may_run_pickles(allow_pickle),
                    dtype=torch.float32,
                )
    except Exception as error:  # of the hub, the files or the code that reads them
        files = 'config.json, preprocessor_config.json and model.safetensors'
        remedy = f'fetch {files} of https://huggingface.co/{name} into a folder and give that, or correct the name'
        if folder.is_dir() or not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name):
            remedy = f'expected a folder with {files} of one network'
        raise UserError(f"huggingface='{name}' cannot be loaded ({_line(error)}): {remedy}") from error
    if other := sorted(str(key[0]) for key in report.get('mismatched_keys', ())):
        raise UserError(f'{what}: the shapes of {first(other)} are those of another network')
    missing = sorted(report.get('missing_keys', ()))
    if lacking := [key for key in missing if 'pooler' not in key]:
        raise UserError(f'{what}: the weights lack {first(lacking)}: they are of another network')
    if missing:  # networks for another task have no pooler, and lend their weights to those that have one
        _warn(f'{what} leaves random weights in {first(missing)}: do not tap them')
    if 'input_ids' in inspect.signature(network.forward).parameters and hasattr(network, 'vision_model'):
        network = network.vision_model
    if 'pixel_values' not in inspect.signature(network.forward).parameters:
        raise UserError(f"huggingface='{name}' is a {type(network).__name__}, which takes no images (pixel_values)")
    try:
        with _quiet('huggingface_hub', 'transformers'):
            processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):  # the folder has none, or one with code of its own
        return network, None
    return network, _statistics_of(processor)


def _statistics_of(processor: Any) -> Statistics | None:
    """Return what a processor of transformers does to pixels, by its answers; its options differ from class to class.

    EfficientNet's divides by the deviation twice, MobileViT's reverses the channels.
    """
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)  # black, white and red
    images[1], images[2, 0] = 255, 255
    try:
        pixels = processor(list(images), return_tensors='pt')['pixel_values']
        black, white, red = pixels[:, :, pixels.shape[2] // 2, pixels.shape[3] // 2].double()
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):  # it gives patches or videos
        return None
    std = 255 / (white - black)
    return (-black * std).tolist(), std.tolist(), bool(red[2] != black[2])


def _from_function(build: str | Mapping[str, Any] | None) -> nn.Module:
    options = dict(build) if isinstance(build, Mapping) else {'function': build}
    name = options.pop('function', None)
    if not isinstance(name, str) or ':' not in name:
        raise UserError(
            f"build= must be 'module:function', 'path/of/file.py:function' or dict(function=..., ...), got {build!r}"
        )
    where, _, path = name.rpartition(':')
    try:
        with _beside(where):
            module = _module_of(Path(where)) if where.endswith('.py') else importlib.import_module(where)
    except Exception as error:  # of the user's code
        raise UserError(
            f"build='{name}': {where} cannot be imported ({type(error).__name__}: {_line(error)})"
        ) from error
    try:
        function = reduce(getattr, path.split('.'), module)
    except AttributeError:
        raise UserError(f"build='{name}': {where} has no '{path}'; {nearest(path, vars(module))}") from None
    if not callable(function):
        raise UserError(f"build='{name}' is a {type(function).__name__}, expected a function that returns a network")
    try:
        check_arguments(f"build='{name}'", function, options)
    except ValueError as error:
        if isinstance(error, UserError):
            raise  # else a builtin has no signature
    try:
        with _beside(where):  # it may import when it is called
            network = function(**options)
    except Exception as error:  # of the user's code
        raise UserError(f"build='{name}' failed ({type(error).__name__}: {_line(error)})") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"build='{name}' returned a {type(network).__name__}, expected an nn.Module")
    return network


def _module_of(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError('it does not exist')
    name = f'{path.stem} of {path.parent.absolute()}'.replace('.', '_')  # no name of an installed module
    spec = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)  # type: ignore[arg-type]  # a .py file has a spec and a loader
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]  # dataclasses look their module up
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _beside(where: str) -> Iterator[None]:
    """Let imports in the block find what is beside a file, as those of a script do; nothing for a module."""
    folder = str(Path(where).parent.absolute())
    if where.endswith('.py'):
        sys.path.insert(0, folder)
    try:
        yield
    finally:  # what the file itself has added stays
        if where.endswith('.py') and folder in sys.path:
            sys.path.remove(folder)


def _add_preprocessor(
    network: nn.Module, statistics: Statistics | None, data_preprocessor: Mapping[str, Any] | None
) -> None:
    """Add a data preprocessor to a network of another library: the given one, or one of its statistics."""
    if data_preprocessor:
        kind = {'type': 'mmpretrain.ClsDataPreprocessor'}
        set_preprocessor(network, MODELS.build(kind | dict(data_preprocessor)))
    elif data_preprocessor is None and statistics is not None:
        set_preprocessor(network, RGBImages(*statistics))
    elif data_preprocessor is not None or not hasattr(network, 'data_preprocessor'):
        set_preprocessor(network, BaseDataPreprocessor())
        if data_preprocessor is None:
            _warn_of_unknown_normalisation()


def set_preprocessor(network: nn.Module, preprocessor: nn.Module) -> None:
    """Give a network a data preprocessor that is none of its modules: an ``nn.Sequential`` runs all of them."""
    network._modules.pop('data_preprocessor', None)
    object.__setattr__(network, 'data_preprocessor', preprocessor)


def _warn_of_unknown_normalisation() -> None:
    _warn(
        "the teacher states no normalisation, and gets the student's batch as it is: give it "
        'data_preprocessor=dict(mean=..., std=..., to_rgb=...), or data_preprocessor={} where that is right'
    )


def _optional(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"a teacher from {extra}= needs {error.name}, which is not installed: pip install -e '.[{extra}]'"
        ) from error


def _no_pickle() -> Any:
    """Keep libraries from running pickled code in the files that they load, in the block."""
    # torch refuses both, and many set the other one for OpenMMLab's older files.
    return mock.patch.dict('os.environ', TORCH_FORCE_WEIGHTS_ONLY_LOAD='1', TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='0')


@contextmanager
def _quiet(*libraries: str, bars: bool = True) -> Iterator[None]:
    """Silence warnings of libraries, such as one for each of five attempts to connect.

    Args:
        libraries: Their names.
        bars: Whether transformers may show how far a download is.
    """
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    shown = None if bars else sys.modules['transformers'].utils.logging
    if shown is not None and (shown := shown if shown.is_progress_bar_enabled() else None):
        shown.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown is not None:
            shown.enable_progress_bar()


def _line(error: BaseException) -> str:
    """Return the first sentence of an error."""
    text = ' '.join(str(error).split()).partition('. ')[0].rstrip('.')
    return text or type(error).__name__


def _warn(line: str) -> None:
    print_log(line, 'current', logging.WARNING)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if not isinstance(module, BaseModule):
            # Else mmengine calls init_weights, by which timm and transformers re-initialise.
            module.is_init = True  # type: ignore[assignment]  # torch declares tensors and modules only
    if isinstance(network, BaseModule):
        check_readable(network)
        network.init_weights()
    random = dict(network.named_parameters())
    for name, found, _ in check_pretrained(network):
        for key in found:
            random.pop(f'{name}.{key}'.lstrip('.'), None)
    if random:
        _warn(
            f'the teacher has no checkpoint, and random weights in {first(list(random))}: give it a checkpoint, unless '
            'they are meant so'
        )
