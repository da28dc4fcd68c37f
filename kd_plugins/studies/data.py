"""Changes of the data in a config: seeds, corruption, a part held out."""

import copy
from collections.abc import Mapping
from typing import Any

from kd_plugins.errors import UserError
from kd_plugins.registry import type_name


def _is_corruptible(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set has options for corruption of its own."""
    return dataset['type'].startswith('kd_plugins.') and type_name(dataset) in ('CIFAR10', 'CIFAR100')


def filled(node: Any, seed: int) -> Any:
    """Return a config with every '{seed}' in its texts replaced by the seed."""
    if isinstance(node, Mapping):
        return {key: filled(value, seed) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(filled(value, seed) for value in node)
    return node.replace('{seed}', str(seed)) if isinstance(node, str) else node


def data_options(condition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which a condition corrupts the training data; none where the data are clean."""
    return {key: condition[key] for key in ('label_noise', 'imbalance') if condition.get(key) is not None}


def hold_out(config: dict[str, Any], options: Mapping[str, Any], metric: str) -> None:
    """Score a run on its held-out training data, beside the test set, under the name of :func:`held_out`."""
    loader = _held_out_loader(config, options)
    given, prefix = config['val_evaluator'], held_out(metric).partition('/')[0]
    evaluator = [dict(x, prefix=prefix) for x in (given if isinstance(given, (list, tuple)) else [given])]
    hook = dict(type='kd_plugins.HeldOutHook', dataloader=loader, evaluator=evaluator)
    config['default_hooks'] = dict(config.get('default_hooks') or {}, held_out=hook)


def hide_test_set(config: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Score a run on its held-out training data alone: its config names no test set."""
    config['val_dataloader'] = _held_out_loader(config, options)
    config.update(dict.fromkeys(('test_dataloader', 'test_cfg', 'test_evaluator')))


def _held_out_loader(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if not config.get('val_dataloader') or not config.get('val_evaluator'):
        raise UserError('validation: the config has no val_dataloader or no val_evaluator: give it both')
    loader = copy.deepcopy(config['val_dataloader'])
    holder = _innermost(loader)
    source = copy.deepcopy(_innermost(config['train_dataloader'])['dataset'])
    # CIFAR applies its indices after the split; another data set, which is wrapped for the split, before.
    if source.pop('indices', None) is not None and not _is_corruptible(source):
        raise UserError(
            f'validation: {source["type"]} has indices, with which other images would be held out: leave indices out'
        )
    holder['dataset'] = source | {key: holder['dataset'][key] for key in ('pipeline',) if key in holder['dataset']}
    corrupt(loader, dict(validation=dict(options, part='val')))
    return loader


def held_out(metric: str) -> str:
    """Return the name that a metric of the test set has on the held-out part."""
    return f'validation/{metric.rpartition("/")[2]}'


def _innermost(loader: dict[str, Any]) -> dict[str, Any]:
    while 'dataset' in loader['dataset']:
        loader = loader['dataset']
    return loader


def corrupt(loader: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Give the data options of a condition to the innermost data set of a loader.

    CIFAR takes ``label_noise`` and ``imbalance`` itself; any other data set is wrapped for them.
    """
    if not options:
        return
    holder = _innermost(loader)
    if _is_corruptible(holder['dataset']):
        holder['dataset'].update(options)
    else:
        holder['dataset'] = dict(type='kd_plugins.Corrupted', dataset=holder['dataset'], **options)
