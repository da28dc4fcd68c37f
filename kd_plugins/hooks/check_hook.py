"""Checks of data and model before training, for mistakes that would stay silent or raise only after hours."""

import json
import logging
import mmap
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from mmengine import fileio
from mmengine.dataset import Compose
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_plugins.classes import check_classes
from kd_plugins.compat import check_operators, mend_ssd_head
from kd_plugins.errors import UserError
from kd_plugins.hooks.distillation_hook import distillation_of, give_num_samples
from kd_plugins.hooks.held_out_hook import HeldOutHook
from kd_plugins.registry import HOOKS, type_name
from kd_plugins.utils.models import unwrapped
from kd_plugins.utils.names import first
from kd_plugins.utils.random import preserved_rng

_CATEGORIES = 2**25  # bytes to read of the categories in a file; where they are longer, the names in metainfo count


@HOOKS.register_module()
class CheckHook(Hook):
    """Compares the classes of evaluation data with those of the training data, and checks the model's operators.

    A distillation with ``task='off'`` learns no classes, so that none are compared then. Parts that keep BatchNorm's
    statistics without having any are logged. A pipeline to which mmdet's ``PipelineSwitchHook`` switches late in
    training is tried on one sample. The commands add this hook to every run; ``default_hooks=dict(check=None)`` removes
    it.

    Raises:
        UserError: Before training: as :func:`~kd_plugins.classes.check_classes`, or the batch size is not that of the
            sampler's groups, or images of unknown sizes would be grouped by them, or a pipeline cannot be switched, or
            a student without a head would be validated, or an accuracy counts the top 5 of fewer classes, or
            ``save_best`` names one that is not counted, or a PreciseBNHook would find a BatchNorm without statistics,
            or mmdet's layer-wise rates would not find the layers of a composite model; before training or testing: as
            :func:`kd_plugins.compat.check_operators`.
    """

    priority = 'HIGH'  # before an EMAHook copies the model

    def before_run(self, runner: Runner) -> None:
        """Check the model."""
        mend_ssd_head()
        check_operators(runner.model)
        if not isinstance(runner.optim_wrapper, OptimWrapper):  # in val() or test()
            return
        _check_constructor(runner)
        distillation = distillation_of(runner)
        if distillation is not None:
            give_num_samples(distillation, runner.train_dataloader.dataset)  # a Distiller does not know its data

    def before_train(self, runner: Runner) -> None:
        """Check the data."""
        loader = runner.train_dataloader
        batch = getattr(loader.sampler, 'batch_size', loader.batch_size)
        if batch != loader.batch_size:
            raise UserError(
                f'train_dataloader: batch_size={loader.batch_size} splits the groups of its '
                f'{type(loader.sampler).__name__}; set batch_size={batch}'
            )
        groups = type(loader.batch_sampler).__name__
        if groups.endswith('AspectRatioBatchSampler') and not {'width', 'height'} <= {*loader.dataset.get_data_info(0)}:
            raise UserError(
                f'train_dataloader: {groups} groups images by width and height, which {type(loader.dataset).__name__} '
                'does not give: set batch_sampler=None'
            )
        for hook in runner.hooks:
            if steps := getattr(hook, 'switch_pipeline', None):
                _try_pipeline(type(hook).__name__, loader.dataset, steps)
            if type(hook).__name__ == 'PreciseBNHook':
                _check_statistics(runner.model)
        note_empty_statistics(runner.model)
        distillation = distillation_of(runner)
        if distillation is not None and distillation.task == 'off':  # no label is learned, and no head
            if runner.val_loop is not None and getattr(unwrapped(runner.model), 'head', True) is None:
                raise UserError(
                    'the student has no head, so that it cannot predict in a validation: remove val_dataloader, '
                    'val_cfg and val_evaluator (KNNHook evaluates its features), or give it a head'
                )
            return
        trained = [*class_lists(loader.dataset)]
        evaluated = []
        if runner.val_loop is not None:
            _check_accuracy(runner)
            evaluated.append(('val_dataloader', runner.val_dataloader.dataset))
            evaluated += [('HeldOutHook', hook.dataset) for hook in runner.hooks if isinstance(hook, HeldOutHook)]
        others = [('train_dataloader', x) for x in trained]
        others += [(name, x) for name, dataset in evaluated for x in class_lists(dataset)]
        for name, (classes, labels) in others if trained else ():
            most = max(labels, trained[0][1])
            check_classes(trained[0][0][:most], classes[:most], name)
        # A head of a panoptic model has the classes of things only, or of stuff.
        if trained and 'thing_classes' not in getattr(loader.dataset, 'metainfo', {}):
            classes, labels = max(trained, key=itemgetter(1))
            check_class_count(runner.model, classes[:labels], [type(x).__name__ for x in _metrics(runner)])


def _metrics(runner: Runner) -> Sequence[Any]:
    return getattr(getattr(runner.val_loop, 'evaluator', None), 'metrics', ())


def _check_accuracy(runner: Runner) -> None:
    """Check what mmpretrain's accuracy and a CheckpointHook would find out after the first validation."""
    model = unwrapped(runner.model)
    count = getattr(getattr(getattr(model, 'student', model), 'head', None), 'num_classes', None)
    for metric in _metrics(runner):
        if type(metric).__name__ != 'Accuracy' or len(getattr(metric, 'thrs', ())) != 1:
            continue
        if isinstance(count, int) and max(metric.topk) > count:
            raise UserError(
                f'val_evaluator: Accuracy counts the top {max(metric.topk)}, of {count} classes: give it a topk of at '
                f'most {count}, as topk=(1,)'
            )
        names = [f'{metric.prefix}/top{k}' for k in metric.topk]
        for hook in runner.hooks:
            saved = getattr(hook, 'save_best', None) if isinstance(hook, CheckpointHook) else None
            for name in [saved] if isinstance(saved, str) else saved or ():
                if name.startswith(f'{metric.prefix}/') and name not in names:
                    raise UserError(f"CheckpointHook: save_best is '{name}', but Accuracy gives {', '.join(names)}")


def _check_constructor(runner: Runner) -> None:
    wrapper, model = runner.cfg.get('optim_wrapper') or {}, unwrapped(runner.model)
    kind = type_name(dict(type=wrapper.get('constructor', '')))
    found = any(name.startswith('backbone') for name, _ in model.named_parameters())
    if kind == 'LearningRateDecayOptimizerConstructor' and not found:
        raise UserError(
            f"optim_wrapper: mmdet's {kind} finds layers by names that begin with 'backbone', and those of a "
            f"{type(model).__name__} begin with 'student', so that all would get the same rate: give the student as "
            'model, with a DistillationHook'
        )


def note_empty_statistics(model: nn.Module) -> None:
    """Log each part of a model that keeps BatchNorm's statistics (``norm_eval=True``) while they are of no data yet.

    mmdet's backbones do so by default, for pretrained weights; from random weights they would learn without.
    """
    start = dict(running_mean=0, running_var=1, bias=0)  # of weights in Caffe's style, the bias alone differs
    for name, module in model.named_modules():
        norms = (
            [x for x in module.modules() if isinstance(x, _BatchNorm)] if getattr(module, 'norm_eval', False) else []
        )
        values = [(value, start.get(key)) for norm in norms for key, value in norm.state_dict().items()]
        if norms and all((value == first).all() for value, first in values if first is not None):
            print_log(
                f'{name}: norm_eval=True keeps the statistics of BatchNorm as they are, and they are of no data yet: '
                'to train from random weights set norm_eval=False',
                'current',
                logging.WARNING,
            )


def check_class_count(model: nn.Module, classes: Sequence[str], metrics: Sequence[str] = ()) -> None:
    """Compare the heads of a model with the classes of its training data; note heads with more.

    A semantic head beside (HTC, SCNet) has classes of its own, those of pixels, and an RPN one of all objects; it is a
    ``bbox_head`` where it is the whole detector.

    Args:
        model: The model.
        classes: Names of the classes.
        metrics: Names of the classes of its metrics.

    Raises:
        UserError: A head has fewer classes, or it has more and a metric fails at a class that the data do not have.
    """
    for name, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        held = re.sub(r'(\.\d+)+$', '', name)  # a cascade has a list of heads
        kind = f'{name} {type(module).__name__}'.lower()
        other = not held.endswith('head') or 'rpn' in kind or 'semantic' in kind
        if other or not isinstance(count, int) or count == len(classes):
            continue
        names = f'{len(classes)} classes ({", ".join(map(str, classes[:5]))}{", ..." if len(classes) > 5 else ""})'
        if count < len(classes):
            raise UserError(f'{name}: num_classes is {count}, but the training data have {names}: correct one of them')
        if 'CocoMetric' in metrics:
            raise UserError(
                f'{name}: num_classes is {count}, but the training data have {names}, and CocoMetric fails at a box of '
                f'any other: set num_classes={len(classes)}, or metainfo=dict(classes=(...)) of the data sets'
            )
        print_log(
            f'{name}: num_classes is {count}, the training data have {names}: the others are never seen, and the '
            f'checkpoint fits no head of num_classes={len(classes)}',
            'current',
            logging.WARNING,
        )


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UserError(
                f'PreciseBNHook averages the statistics of every BatchNorm, and {name} keeps none: remove the hook, '
                "or, for a Distiller's adapter, use a DistillationHook, whose adapters the model does not hold"
            )


def _try_pipeline(name: str, dataset: Any, steps: Sequence[Any]) -> None:
    if not hasattr(dataset, 'pipeline'):
        raise UserError(
            f'{name}: {type(dataset).__name__} has no pipeline of its own to switch: use the data set itself as '
            'train_dataloader.dataset, or remove the hook'
        )
    before = dataset.pipeline
    dataset.pipeline = Compose(steps)
    try:
        with preserved_rng():
            sample = dataset[0]
    finally:
        dataset.pipeline = before
    if 'inputs' not in sample:
        raise UserError(
            f'{name}: its pipeline returns no inputs: it has to load images and end with the same step as the training '
            'pipeline'
        )


def class_lists(dataset: Any) -> Iterator[tuple[Sequence[str], int]]:
    """Yield the class names by label, and the number of labels, of a data set, or of each of the sets inside it.

    These names need not be those in ``metainfo``. Class folders are numbered in the order of their names, and mmdet
    numbers COCO's categories in the order of the file; a missing one therefore shifts the labels of all that follow,
    and further names in ``metainfo`` have no label. Data whose class names are inputs of the network
    (``return_classes``) yield nothing.
    """
    inner = getattr(dataset, 'dataset', None)
    parts = [*getattr(dataset, 'datasets', []), *([] if inner is None else [inner])]
    for part in parts:
        yield from class_lists(part)
    if not parts and not getattr(dataset, 'return_classes', False):
        classes = tuple(getattr(dataset, 'metainfo', {}).get('classes') or ())
        categories, others = _categories(dataset)
        if unused := [name for name in classes if categories and name not in categories]:
            left_out = (
                f', and its categories {first(others)} are no classes and left out: if that is not meant so, set '
                'metainfo=dict(classes=(...)) of the data set'
                if others
                else ''
            )
            print_log(
                f'{dataset.ann_file}: no category is named {first(unused)}, so these classes have no boxes{left_out}',
                'current',
                logging.WARNING,
            )
        names = tuple(getattr(dataset, 'folder_to_idx', None) or categories)
        for label, (name, given) in enumerate(zip(names, classes, strict=False)):
            if name != given and name in classes:
                print_log(
                    f"label {label} is '{name}' in the data, but '{given}' in classes: labels follow the order of the "
                    'data, so give classes in that order',
                    'current',
                    logging.WARNING,
                )
                break
        if names or classes:
            yield names + classes[len(names) :], len(names or classes)


def _categories(dataset: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Return the categories that a data set in COCO's format uses, in the order of their labels, and the others."""
    labels, path = getattr(dataset, 'cat2label', None), getattr(dataset, 'ann_file', '')
    if labels is None or not str(path).endswith('.json'):
        return (), ()
    if not labels:
        raise UserError(
            f'{path}: no category has the name of a class ({", ".join(dataset.metainfo["classes"])}), so no box has a '
            'label: correct classes'
        )
    # Parsing the whole file, which may have gigabytes, takes long; its categories usually come last.
    with (
        fileio.get_local_path(path, backend_args=getattr(dataset, 'backend_args', None)) as local,
        open(local, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        start = text.rfind(b'"categories"') + len(b'"categories"')
        rest = text[start : start + _CATEGORIES]
    try:
        categories, _ = json.JSONDecoder().raw_decode(rest.decode(errors='ignore').lstrip(' :\r\n\t'))
        names = {category['id']: category['name'] for category in categories}
        used = tuple(names.pop(category) for category in sorted(labels, key=labels.get))
        return used, tuple(names.values())
    except (ValueError, TypeError, KeyError):  # another entry of that name
        return (), ()
