"""On-the-fly native ensemble: branches of one network that learn from their ensemble."""

import copy
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor, nn

from kd_plugins.checkpoint import weights_of
from kd_plugins.distillation.distillation import check_finite
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.distillation.samples import note_several_classes
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.errors import UserError
from kd_plugins.functional import kd_loss
from kd_plugins.functional.checks import check_choice, check_number
from kd_plugins.models.composite import Composite, check_input_shape, config_of
from kd_plugins.registry import MODELS, type_name
from kd_plugins.utils.random import preserved_rng


class _Shared(nn.Module):
    """Replaces a shared module in a branch: returns the student's feature where it has one, else its input.

    Each branch has a copy, into which the next layer may write its output (``ReLU(inplace=True)``).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.feature: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.requires_grad:  # the image does not
            raise UserError(
                f"NativeEnsemble: a branch has weights of its own before '{self.name}': shared must name every module "
                'with weights up to the last shared one, in the order in which they run'
            )
        return x if self.feature is None else self.feature.clone()


class _Tied(nn.Module):
    """Replaces a tied module in a branch: runs the student's, which alone owns the weights."""

    def __init__(self, student: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self._student = (student,)  # in a tuple it is not a submodule: its weights are counted and saved once

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Looked up each time: mmengine may have replaced it by a SyncBatchNorm.
        return self._student[0].get_submodule(self.name)(*args, **kwargs)


def _without_pretrained(config: Any) -> Any:
    """Return a copy of a model's config dict without the ``init_cfg`` that load pretrained weights."""

    def pretrained(value: Any) -> bool:
        return isinstance(value, Mapping) and type_name(value) in ('Pretrained', 'PretrainedInit')

    if isinstance(config, Mapping):
        return {key: _without_pretrained(value) for key, value in config.items() if not pretrained(value)}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_pretrained(value) for value in config if not pretrained(value))
    return copy.deepcopy(config)


@MODELS.register_module()
class NativeEnsemble(Composite):
    """On-the-fly native ensemble (ONE): a network with several branches of its last part, and a gate that weights them.

    The student is a complete plain network, branch 0. The other branches have its architecture and random weights of
    their own, and continue from the output of the student's last shared module. With logits z_i of the branches, gates
    ``g = softmax(ReLU(BatchNorm(W pool(shared feature) + b)))`` and the ensemble's logits ``z = sum_i g_i z_i``, the
    loss is

    ``sum_i CE(z_i) + CE(z) + w(t) * sum_i tau^2 KL(softmax(z / tau) || softmax(z_i / tau))``

    where z gets no gradient from the divergence, :func:`kd_plugins.functional.kd_loss` (the authors add 1e-7 to the
    ensemble's probabilities), and CE is the classification loss of the student's head. With t from 0 to 1 over the
    training, ``w(t) = weight * exp(-5 (1 - t / ramp)^2)`` up to ``ramp``, and ``weight`` afterwards; it changes in
    every iteration, in the authors' code in every epoch. The log shows ``loss_0`` and ``loss_kl_0`` for the student,
    the same for the other branches, and ``loss_ensemble``; and ``gate_0``, ..., the means of g over the batch: one near
    1 says that the ensemble is that branch alone, and teaches the others no more than it knows.

    The student's initial weights are those of a run of the student alone with the same seed, pretrained ones included;
    the modules of the other branches start from random weights. A shared module exists once and runs once.

    ``predict='branch'`` predicts with the student, at its plain cost, ``predict='ensemble'`` with the ensemble. At the
    end of training ``ExportHook`` writes ``student.pth``, the plain network, which is tested with its plain config, and
    ``ensemble.pth``, the whole model, which is tested with its own config::

        python tools/test.py configs/cifar10/resnet26.py student.pth
        NETWORK=resnet26 python tools/test.py configs/cifar10/one.py ensemble.pth --cfg-options model.predict=ensemble

    Args:
        student: Config dict of a classifier with one of mmpretrain's heads.
        branches: Number of branches, including the student.
        shared: Names of the modules that all branches share, in the order in which they run; modules without weights
            may be left out. The last one must output a map. In mmpretrain's ResNet they are ``backbone.conv1,
            backbone.bn1, backbone.layer1, ...``.
        tied: Names of modules after the shared part that have one set of weights for all branches, though each branch
            runs them: ``['backbone.norm']`` is the single last BatchNorm of all branches of a ``WideResNet`` in [3].
            Its running statistics include every branch.
        tau: Temperature; 3 in the paper.
        weight: Weight of the divergence: a number, or the config dict of a
            :class:`~kd_plugins.distillation.schedule.Schedule`.
        ramp: Fraction of training over which the weight rises, 0 to 1; 80 of 300 epochs in the authors' code. 0 for a
            weight that does not rise.
        predict: ``'branch'`` or ``'ensemble'``.
        tap: Module that outputs the logits.
        use_sigmoid: Whether the classes are independent, as where an image has several; see
            :func:`~kd_plugins.functional.kd_loss`.
        input_shape: Shape (C, H, W) of the images in the pass that checks the branches and sizes the gate.
        data_preprocessor: Config dict of the student's preprocessor, where ``student`` has none (mmengine passes the
            config's here).

    Raises:
        UserError: The student's head is not one of mmpretrain's; it takes no images of ``input_shape``; a module to
            share, tie or tap does not exist; the shared modules are not the beginning of the network, or do not end in
            a map; a module is both shared and tied; in training: a batch has one image, or a loss is not finite.
        ValueError: A number or choice is out of range.

    References:
        1. Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018, arXiv 1806.04606.
        2. github.com/Lan1991Xu/ONE_NeurIPS2018, ``cifar_one.py`` and ``models/cifar/resnet.py``.
        3. github.com/NeurAI-Lab/InBiaseD, ``models/cifar/wideresnet.py``.
    """

    _others = 'branches'

    def __init__(
        self,
        student: Mapping[str, Any],
        branches: int = 3,
        shared: Sequence[str] = ('backbone.stem', 'backbone.stage1', 'backbone.stage2'),
        tied: Sequence[str] = (),
        tau: float = 3.0,
        weight: float | Mapping[str, Any] = 1.0,
        ramp: float = 80 / 300,
        predict: str = 'branch',
        tap: str = 'head.fc',
        use_sigmoid: bool = False,
        input_shape: Sequence[int] = (3, 64, 64),
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        check_number('branches', branches, 2, whole=True)
        check_number('tau', tau, 0, strict=True)
        check_number('ramp', ramp, 0)
        if ramp > 1:
            raise ValueError(f'ramp: expected a part of the training, from 0 to 1, as 80 / 300, got {ramp!r}')
        check_choice('predict', predict, ('branch', 'ensemble'))
        if not isinstance(weight, Mapping):
            check_number('weight', weight, 0)
            weight = dict(at=[0], value=[weight], by='iter')  # in any run
        check_input_shape(input_shape)
        config = config_of(student, data_preprocessor)
        super().__init__(config)
        network = self.student
        if not hasattr(getattr(network, 'head', None), '_get_loss'):
            head = f'a {type(network.head).__name__}' if hasattr(network, 'head') else 'none'
            raise UserError(
                f"NativeEnsemble needs a classifier with one of mmpretrain's heads, got {head} in a "
                f'{type(network).__name__}'
            )
        if not shared:
            raise UserError('NativeEnsemble: shared is empty: name the modules that the branches share')
        Recorder(network, [*shared, *tied])  # raises for unknown names
        for name in tied:
            if any(f'{name}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{name}.') for other in shared):
                raise UserError(f"NativeEnsemble: '{name}' is tied, but shared contains it or a part of it")
        self.tau, self.predict_with, self.tap, self.last_shared = tau, predict, tap, shared[-1]
        self.use_sigmoid, self._noted = use_sigmoid, use_sigmoid
        self._weight = Schedule(**weight)
        self._ramp = Schedule([0, ramp] if ramp else [0], [0, 1] if ramp else [1], by='progress')
        self._recorders = [Recorder(network, [self.last_shared, tap])]
        with preserved_rng():
            self.branches = nn.ModuleList(MODELS.build(_without_pretrained(config)) for _ in range(branches - 1))
            for branch in self.branches:
                for name in (*shared, *tied):
                    parent, _, child = name.rpartition('.')
                    replacement = _Tied(network, name) if name in tied else _Shared(name)
                    setattr(branch.get_submodule(parent), child, replacement)
                self._recorders.append(Recorder(branch, [tap]))
            _, channels, *_ = self._feature_shape(torch.zeros(1, *input_shape))
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels, branches),
                nn.BatchNorm1d(branches),
                nn.ReLU(),
                nn.Softmax(1),
            )

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Return what the student or the ensemble predicts; in mode ``loss``, the losses of all branches."""
        if mode == 'loss' and len(inputs) == 1:
            raise UserError(
                "NativeEnsemble: a batch has one image, but the gate's BatchNorm needs at least two: set "
                'train_dataloader.drop_last=True, or another batch size'
            )
        if mode != 'loss' and self.predict_with == 'branch':
            return self.student(inputs, data_samples, mode=mode)
        if mode == 'loss' and not self._noted:
            note_several_classes(data_samples, 'NativeEnsemble', 'use_sigmoid=True')
            self._noted = True
        tasks, logits, feature = self._run(inputs, data_samples, 'loss' if mode == 'loss' else 'tensor')
        gates = self.gate(feature)
        ensemble = (gates[..., None] * torch.stack(logits, 1)).sum(1)
        if mode == 'tensor':
            return ensemble
        if mode == 'predict':
            return self.student.head._get_predictions(ensemble, data_samples)
        weight = self.current_weight()
        losses: dict[str, Any] = {}
        for index, (task, own) in enumerate(zip(tasks, logits, strict=True)):
            kl = own.new_zeros(())
            if weight:
                kl = weight * kd_loss(own, ensemble, self.tau, use_sigmoid=self.use_sigmoid)
            losses |= {f'{name}_{index}': value for name, value in (task | {'loss_kl': kl}).items()}
        task = self.student.head._get_loss(ensemble, data_samples)
        losses |= {f'{name}_ensemble': value for name, value in task.items()}
        check_finite(losses)
        return losses | {f'gate_{index}': gate for index, gate in enumerate(gates.detach().mean(0))}

    def current_weight(self) -> float:
        """Return the weight of the divergence at this point of training."""
        return self._weight() * exp(-5 * (1 - self._ramp()) ** 2)

    def deployable(self, state_dict: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights to export: ``student``, with the keys of its plain model, and all as ``ensemble``."""
        return {'student': weights_of(state_dict, 'the checkpoint', 'student'), 'ensemble': state_dict}

    def _run(
        self, inputs: Tensor, data_samples: Sequence[Any] | None, mode: str
    ) -> tuple[list[Any], list[Tensor], Tensor]:
        """Run the student, and the branches from its shared feature; return outputs, logits and that feature."""
        with self._recorders[0].recording() as features:
            outputs = [self.student(inputs, data_samples, mode=mode)]
        (own,), (feature, *_) = features[self.tap], features[self.last_shared]
        logits = [own]
        for branch, recorder in zip(self.branches, self._recorders[1:], strict=True):
            last_shared: Any = branch.get_submodule(self.last_shared)
            last_shared.feature = feature
            try:
                # Modules before it that are not shared, such as activations, run on one image; nothing uses the result.
                with recorder.recording() as features:
                    outputs.append(branch(inputs[:1].clone(), data_samples, mode=mode))
            finally:
                last_shared.feature = None
            logits += features[self.tap]
        return outputs, logits, feature

    def _feature_shape(self, images: Tensor) -> torch.Size:
        """Run all branches once, to check that their shapes match; return the shape of the shared feature."""
        self.eval()
        try:
            with self._recorders[0].probing():
                self.student(images.clone())
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f'NativeEnsemble: the student takes no images of input_shape={tuple(images.shape[1:])} '
                f'({" ".join(str(error).split())}): give the (C, H, W) of the data'
            ) from error
        try:
            with torch.enable_grad():
                feature = self._run(images, None, 'tensor')[2]
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"NativeEnsemble: a branch cannot continue from '{self.last_shared}' "
                f'({" ".join(str(error).split())}): shared must name every module with weights up to it, in the order '
                'in which they run'
            ) from error
        self.train()
        if feature.dim() != 4:
            raise UserError(
                f"NativeEnsemble: the gate pools a map (N, C, H, W), but '{self.last_shared}' outputs "
                f'{tuple(feature.shape)}: end shared with an earlier module'
            )
        return feature.shape
