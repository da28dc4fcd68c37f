"""Progress without labels to train on: nearest neighbours among a few labelled images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, collect_results
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.layout import Layout, Size, Tokens, layout_of, size_of
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.errors import UserError
from kd_plugins.hooks.distillation_hook import distillation_of
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import unwrapped
from kd_plugins.utils.names import first
from kd_plugins.utils.random import preserved_rng


class _Side(NamedTuple):
    """A network, its tap, how to run it, the size of the images that it gets, and whether its pass may end there."""

    name: str
    network: nn.Module
    tap: str
    run: Callable[..., Any]
    input_size: Callable[[Tensor], Size]
    stop: bool


@HOOKS.register_module()
class KNNHook(Hook):
    """Classifies a few labelled images by their nearest neighbours, with the student's features and the teacher's.

    The accuracies, in percent, are ``knn/student`` and, where the run has a teacher, ``knn/teacher`` (``knn/teacher1``
    for a second one), see :func:`kd_plugins.evaluation.knn_accuracy`. At a validation they join its metrics, so that
    ``CheckpointHook(save_best='knn/student', rule='greater')`` can select by them; otherwise they have a line and
    scalars of their own. Either way they are in ``result.json``. Before training both are computed once: the teacher's
    stays, the student's is where it starts. Training is the same, bit for bit, with and without this hook::

        labelled = dict(type='CustomDataset', data_root='data/imagenette-128', pipeline=[
            dict(type='kd_plugins.LoadImage'), dict(type='ResizeEdge', scale=128),
            dict(type='CenterCrop', crop_size=112), dict(type='PackInputs')])
        custom_hooks = [dict(
            type='kd_plugins.KNNHook', bank=dict(labelled, data_prefix='train', indices=[*range(0, 5000, 5)]),
            queries=dict(labelled, data_prefix='val'))]  # each fifth image: files are sorted by class

    A feature is the mean of the tap's last map over its positions; of tokens (B, N, C) the mean of those behind class
    and register tokens, or the class token alone; a vector (B, C) is taken as it is. Images are normalised as the
    student's preprocessor does. Under an ``EMAHook`` the averaged weights are evaluated. Several processes share the
    images, with the result of one.

    Args:
        bank: Config dict of a labelled data set that neighbours are searched in, or of its data loader, whose sampler
            is not used.
        queries: Config dict of the labelled images to classify, or of their data loader.
        k: Number of neighbours.
        temperature: Temperature of the weighted vote; None for a plain vote.
        student: Tap of the student.
        teacher: Tap of each teacher; by default ``'backbone'`` where it has such a module, else its last tap in a term.
        token: ``'mean'`` of the image's tokens, or ``'class'``, the first token.
        interval: Epochs between two evaluations, or iterations in a run by iterations; None: at every validation, and
            in a run without validation after every epoch.

    Raises:
        UserError: Before training: faiss is missing, an image has no single label, there is no such tap, or an option
            is out of range.
    """

    priority = 'HIGHEST'  # before the hooks that use the metrics, and before the EMAHook takes its weights back

    def __init__(
        self,
        bank: Mapping[str, Any],
        queries: Mapping[str, Any],
        k: int = 20,
        temperature: float | None = 0.07,
        student: str = 'backbone',
        teacher: str | None = None,
        token: Literal['mean', 'class'] = 'mean',
        interval: int | None = None,
    ) -> None:
        if token not in ('mean', 'class') or (interval is not None and interval < 1):
            raise UserError(
                f"KNNHook: token={token!r}, interval={interval}; expected 'mean' or 'class', and at least 1 or None"
            )
        self._configs, self._k, self._temperature = dict(bank=bank, queries=queries), k, temperature
        self._student, self._teacher, self._token, self._interval = student, teacher, token, interval
        self._loaders: dict[str, DataLoader] = {}
        self._teacher_scores: dict[str, float] = {}
        self._noted = False
        self._start = 0
        self._older: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Build the data, and evaluate the teachers and the student that training starts with."""
        self._start = runner.iter
        # An EMAHook has copied the network before its weights were initialised, and copies them in the first iteration.
        model = _averaged(runner) if runner.iter else unwrapped(runner.model)
        self._report(runner, model, runner.epoch if _by_epoch(runner) else runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the accuracies to the metrics of a validation."""
        if self._interval is None and metrics is not None:
            metrics.update(self._scores(runner, unwrapped(runner.model)))
            return
        scalars = runner.message_hub.log_scalars
        self._older = {name: scalars.pop(name) for name in list(scalars) if name.startswith('val/knn/')}

    def after_val(self, runner: Runner) -> None:
        """Give back the accuracies of before, which the validation is not to show as its own."""
        runner.message_hub.log_scalars.update(self._older)
        self._older = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Evaluate in a run by iterations, once an EMAHook has averaged the weights of the iteration before."""
        due = self._interval and runner.iter > self._start and runner.iter % self._interval == 0
        if due and not _by_epoch(runner):
            self._report(runner, _averaged(runner), runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate in a run by epochs; in one by iterations, after the last."""
        if self._interval is None and runner.val_loop is not None:
            return
        if not _by_epoch(runner):
            self._report(runner, _averaged(runner), runner.iter)
        elif self.every_n_epochs(runner, self._interval or 1) or self.is_last_train_epoch(runner):
            self._report(runner, _averaged(runner), runner.epoch + 1)

    def _report(self, runner: Runner, model: nn.Module, step: int) -> None:
        scores = self._scores(runner, model)
        for name, value in scores.items():
            runner.message_hub.update_scalar(f'val/{name}', value)
        unit = 'Epoch' if _by_epoch(runner) else 'Iter'
        runner.logger.info(f'{unit}(knn) [{step}]  ' + '  '.join(f'{name}: {x:.4f}' for name, x in scores.items()))
        runner.visualizer.add_scalars(scores, step=step)

    @torch.no_grad()
    def _scores(self, runner: Runner, model: nn.Module) -> dict[str, float]:
        """Return the accuracies of a model and of the teachers."""
        with preserved_rng():
            if not self._loaders:
                self._loaders = {name: _loader(runner, config) for name, config in self._configs.items()}
                _check_classes(self._loaders)
            preprocessor: Any = model.data_preprocessor
            distillation, student = distillation_of(runner), model
            if isinstance(getattr(model, 'distillation', None), Distillation):
                student = model.get_submodule('student')
            if distillation is not None and not self._teacher_scores:
                for index, teacher in enumerate(distillation.teachers):
                    tap = _default_tap(distillation, index) if self._teacher is None else self._teacher
                    forward = partial(teacher.probe, fold=False)
                    side = _Side('teacher', teacher.model, tap, forward, teacher.input_size, False)
                    with teacher.unfolded():
                        self._teacher_scores[f'knn/teacher{index or ""}'] = self._accuracy(preprocessor, side)
            modes = {module: module.training for module in student.modules()}
            student.eval()
            side = _Side('student', student, self._student, partial(student, mode='tensor'), size_of, True)
            accuracy = self._accuracy(preprocessor, side)
            for module, mode in modes.items():
                module.training = mode
        return {'knn/student': accuracy} | self._teacher_scores

    def _accuracy(self, preprocessor: nn.Module, side: _Side) -> float:
        from kd_plugins.evaluation import knn_accuracy  # needs faiss

        bank, queries = (self._features(preprocessor, side, name) for name in ('bank', 'queries'))
        result = [0.0]
        if bank is not None and queries is not None:  # in the main process
            self._note_missing(bank[1], queries[1])
            result = [knn_accuracy(*bank, *queries, k=self._k, temperature=self._temperature)]
        broadcast_object_list(result)
        return result[0]

    def _note_missing(self, bank: np.ndarray, queries: np.ndarray) -> None:
        missing = np.setdiff1d(queries, bank).tolist()
        if not missing or self._noted:
            return
        self._noted = True
        classes = getattr(self._loaders['bank'].dataset, 'metainfo', {}).get('classes')
        print_log(
            f'KNNHook: bank has no image of the classes {first([str(classes[x] if classes else x) for x in missing])}, '
            'so that no such query can be right: take its images from all classes (indices=1000 are the first 1000, '
            'in folders of classes those of the first classes)',
            'current',
            logging.WARNING,
        )

    def _features(self, preprocessor: nn.Module, side: _Side, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return features (N, D) and labels (N,) of all images in the order of the data set; None in other processes.

        Args:
            preprocessor: The student's data preprocessor.
            side: The network.
            name: ``'bank'`` or ``'queries'``.
        """
        recorder, loader = Recorder(side.network, [side.tap], whole=True, role=side.name), self._loaders[name]
        layout = layout_of(side.name, side.network, side.tap, Tokens())
        dataset: Any = loader.dataset
        rows: list[tuple[np.ndarray, int]] = []
        for batch in loader:
            batch = preprocessor(batch, False)
            inputs, samples = batch['inputs'], batch.get('data_samples')
            with recorder.recording(side.stop) if rows else recorder.probing() as features:
                side.run(inputs, samples)
            vectors = self._pooled(features[side.tap], layout, side.input_size(inputs)).float().cpu().numpy()
            rows += zip(vectors, _labels(samples, name), strict=True)
        collected = collect_results(rows, len(dataset), 'gpu')  # by the backend's own gather, without files
        if collected is None:
            return None
        return np.stack([vector for vector, _ in collected]), np.array([label for _, label in collected])

    def _pooled(self, levels: Sequence[Tensor], layout: Layout, input_size: Size) -> Tensor:
        feature = levels[-1] if levels else torch.empty(())
        if feature.dim() == 2:
            return feature
        if feature.dim() == 3:
            return feature[:, 0] if self._token == 'class' else feature[:, layout.prefix or 0 :].mean(1)
        if feature.dim() == 4:
            return layout.as_map(feature, input_size).mean((2, 3))
        raise UserError(
            f"KNNHook: '{layout.tap}' outputs {tuple(feature.shape) if levels else 'no tensor'}, expected maps "
            '(B, C, H, W), tokens (B, N, C) or vectors (B, C): tap another module'
        )


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _averaged(runner: Runner) -> nn.Module:
    """Return the model with the weights that are exported: the averaged ones where there are such."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    return hooks[0].ema_model.module if hooks else unwrapped(runner.model)


def _default_tap(distillation: Distillation, index: int) -> str:
    if 'backbone' in dict(distillation.teachers[index].model.named_children()):
        return 'backbone'
    return [tap for term in distillation.terms if index in term.teachers for tap in term.teacher_taps][-1]


def _loader(runner: Runner, config: Mapping[str, Any]) -> DataLoader:
    loader = dict(config) if 'batch_size' in config else dict(batch_size=64, num_workers=2, dataset=config)
    sampler = dict(type='DefaultSampler', shuffle=False)
    return runner.build_dataloader(loader | dict(sampler=sampler, batch_sampler=None, drop_last=False))


def _check_classes(loaders: Mapping[str, DataLoader]) -> None:
    bank, queries = (getattr(loader.dataset, 'metainfo', {}).get('classes') for loader in loaders.values())
    if bank and queries and tuple(bank) != tuple(queries):
        raise UserError(
            f'KNNHook: bank has the classes {first(list(bank))}, queries {first(list(queries))}: give both the '
            'same, in the same order'
        )


def _labels(samples: Sequence[Any] | None, name: str) -> list[int]:
    labels = [getattr(sample, 'gt_label', torch.empty(0)) for sample in samples or [None]]
    if any(label.numel() != 1 for label in labels):
        raise UserError(
            f'KNNHook: an image of {name} has no single gt_label: use a classification set with labels, whose pipeline '
            "ends with mmpretrain's PackInputs"
        )
    return [int(label) for label in labels]
