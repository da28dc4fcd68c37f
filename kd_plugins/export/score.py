"""The score of an exported file, by the metric and the data that score the network."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor

from kd_plugins.classes import check_checkpoint_classes
from kd_plugins.config import check_config
from kd_plugins.distillation.sources import student_of
from kd_plugins.engine import Tester
from kd_plugins.errors import UserError
from kd_plugins.export.files import Runtime
from kd_plugins.export.network import Exportable
from kd_plugins.registry import type_name
from kd_plugins.utils.files import check_writable


class FileModel(BaseModel):
    """An exported file in the place of the network that it holds, for mmengine's test loop.

    Args:
        part: The network, for its preprocessor, and to make predictions of outputs.
        runtime: The file.
    """

    def __init__(self, part: Exportable, runtime: Runtime) -> None:
        super().__init__(part.whole[0].data_preprocessor)
        self._parts = part, runtime  # no submodule: it stays on the CPU

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'predict') -> Any:
        """Return what the network would predict."""
        part, runtime = self._parts
        return part.predict(runtime(part.pixels(inputs)), data_samples)


def check_score(config: Config, features: Path | None) -> None:
    """Check, before anything is built, that a config can score, and that ``features`` fits it.

    Raises:
        UserError: It has no whole test set and metric, or its metric has no features, or they cannot be written.
    """
    check_config(config, 'test')
    if (student_of(config.model).get('test_cfg') or {}).get('mode') == 'slide':
        raise UserError(
            "--score: the network is scored by windows (test_cfg.mode is 'slide') and a file by whole images: give "
            '--cfg-options model.test_cfg.mode=whole (of a Distiller model.student.test_cfg.mode)'
        )
    if features is not None and not _retrieval(config):
        raise UserError(f'--features {features}: {config.filename} has no kd_plugins.ReIDMetric, which keeps them')
    if features is not None and features.suffix != '.npz':
        raise UserError(f'--features {features}: expected a file ending in .npz')
    if features is not None:
        check_writable('--features', features)


def score(
    config: Config, part: Exportable, runtime: Runtime, checkpoint: dict[str, Any], features: Path | None = None
) -> dict[str, Any]:
    """Return the metrics of a file on a config's test set, as ``tools/test.py`` computes them of the network.

    Args:
        config: The config.
        part: The network.
        runtime: The file.
        checkpoint: The network's checkpoint, whose classes are compared with those of the test set.
        features: File ``.npz`` in which a ``ReIDMetric`` keeps the features, for ``tools/eval_reid.py``.
    """
    config = copy.deepcopy(config)
    config.model = dict(student_of(config.model))  # a Distiller would build its teacher
    config.custom_hooks = []  # they are about the training
    for metric in _retrieval(config) if features else ():
        metric['save_to'] = str(features)
    runner = Tester.from_cfg(config)
    runner.model = FileModel(part, runtime)
    check_checkpoint_classes(checkpoint, runner.test_dataloader.dataset)
    return runner.test()


def _retrieval(config: Config) -> list[Any]:
    """Return the config dicts of the metrics of re-identification."""
    metrics = config.test_evaluator if isinstance(config.test_evaluator, list | tuple) else [config.test_evaluator]
    return [metric for metric in metrics if type_name(metric) == 'ReIDMetric']
