"""Branches of one network that teach each other."""

import copy
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor, nn

from kd_plugins.checkpoint import weights_of
from kd_plugins.distillation.distillation import check_finite
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.errors import UserError
from kd_plugins.functional import kd_loss
from kd_plugins.functional.checks import check_choice, check_number
from kd_plugins.models.composite import Composite
from kd_plugins.registry import MODELS, type_name
from kd_plugins.utils.random import preserved_rng


class _Shared(nn.Module):
    """Stands in a branch for a module that the student runs for all; hands on its input, or the feature it holds."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.feature: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.requires_grad:  # the image does not
            raise UserError(
                f"NativeEnsemble: before '{self.name}' a branch runs weights of its own: shared must name, "
                'in the order of running, every module with weights up to the last shared one'
            )
        return x if self.feature is None else self.feature


class _Tied(nn.Module):
    """Stands in a branch for a module of the student's, and runs that; the student alone owns its weights."""

    def __init__(self, student: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self._student = (student,)  # in a tuple it is no submodule: its weights are counted and saved once

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Looked up anew: mmengine may have put a SyncBatchNorm in its place.
        return self._student[0].get_submodule(self.name)(*args, **kwargs)


def _untrained(record: Any) -> Any:
    """Return a copy of a model's record without the pretrained weights that it names."""

    def pretrained(value: Any) -> bool:
        return isinstance(value, Mapping) and type_name(value) in ('Pretrained', 'PretrainedInit')

    if isinstance(record, Mapping):
        return {key: _untrained(value) for key, value in record.items() if not pretrained(value)}
    if isinstance(record, (list, tuple)):
        return type(record)(_untrained(value) for value in record if not pretrained(value))
    return copy.deepcopy(record)


@MODELS.register_module()
class NativeEnsemble(Composite):
    """On-the-fly native ensemble (ONE): a network whose last part exists several times, and a gate that joins them.

    The student is a whole plain network, branch 0. The other branches are networks of its kind, with random weights of
    their own, that take over what the student's last shared module puts out. With logits z_i of the branches, gates
    ``g = softmax(ReLU(BatchNorm(W pool(shared feature) + b)))`` and the ensemble's logits ``z = sum_i g_i z_i``, the
    loss is

    ``sum_i CE(z_i) + CE(z) + w(t) * sum_i tau^2 KL(softmax(z / tau) || softmax(z_i / tau))``

    without gradient to z in the divergence, which is :func:`kd_plugins.functional.kd_loss` (the authors add 1e-7 to the
    ensemble's probabilities); CE is the student's own classification loss. With t from 0 to 1 over the training,
    ``w(t) = weight * exp(-5 (1 - t / ramp)^2)`` up to ``ramp``, and ``weight`` from there on; it changes with every
    iteration, in the authors' code with every epoch. The log shows ``loss_0`` and ``loss_kl_0`` for the student, the
    same for the branches, and ``loss_ensemble``.

    The student starts from the weights that it would have alone with the same seed, pretrained ones too; what belongs
    to a branch starts from random weights. A shared module exists and runs once.

    Scored is the student (``predict='branch'``), at its plain cost, or the ensemble (``predict='ensemble'``). At the
    end of training ``ExportHook`` writes ``student.pth``, the plain network, to be scored with its plain config, and
    ``ensemble.pth``, all of it, to be scored with its own::

        python tools/test.py configs/cifar10/resnet26.py student.pth
        NETWORK=resnet26 python tools/test.py configs/cifar10/one.py ensemble.pth --cfg-options model.predict=ensemble

    Args:
        student: Record of a classifier with a head of mmpretrain's.
        branches: How many there are, the student among them.
        shared: The modules that all branches share, in the order in which they run; those that hold no weights may be
            left out. The last one must put out a map. ``backbone.conv1, backbone.bn1, backbone.layer1, ...`` in
            mmpretrain's ResNet.
        tied: Modules behind the shared part that have one set of weights for all branches, though each branch runs
            them: ``['backbone.norm']`` is the one last BatchNorm of the branches of a ``WideResNet`` in [3]. Its
            running statistics see every branch.
        tau: Temperature; 3 in the paper.
        weight: Of the divergence: a number, or the record of a :class:`~kd_plugins.distillation.schedule.Schedule`.
        ramp: Share of training over which that weight rises, 0 to 1; the authors' 80 of 300 epochs. 0 for no rise.
        predict: ``'branch'`` or ``'ensemble'``.
        tap: The module that puts out the logits.
        data_preprocessor: The student's, where its record has none (mmengine passes the config's here).

    Raises:
        UserError: The student's head is none of mmpretrain's; a module to share or to tap does not exist; what is
            shared is not the beginning of the network, or ends in no map; a module is both shared and tied.
        ValueError: A number or choice is out of range.

    Sources:
        1. Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018, arXiv 1806.04606.
        2. github.com/Lan1991Xu/ONE_NeurIPS2018, ``cifar_one.py`` and ``models/cifar/resnet.py``.
        3. github.com/NeurAI-Lab/InBiaseD, ``models/cifar/wideresnet.py``.
    """

    _holders = ('student', 'branches')

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
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        check_number('branches', branches, 2, whole=True)
        check_number('tau', tau, 0, strict=True)
        check_number('ramp', ramp, 0)
        check_choice('predict', predict, ('branch', 'ensemble'))
        if not isinstance(weight, Mapping):
            check_number('weight', weight, 0)
            weight = dict(at=[0], value=[weight])
        record = dict(student)
        record.setdefault('data_preprocessor', data_preprocessor)
        network = MODELS.build(copy.deepcopy(record))
        super().__init__(network.data_preprocessor)
        if not hasattr(getattr(network, 'head', None), '_get_loss'):
            found = f'a {type(network.head).__name__}' if hasattr(network, 'head') else 'none'
            raise UserError(
                f"NativeEnsemble joins classifiers with a head of mmpretrain's, got {found} in a "
                f'{type(network).__name__}'
            )
        if not shared:
            raise UserError('NativeEnsemble: shared names no module: give those that the branches share')
        Recorder(network, [*shared, *tied])  # knows the names
        for name in tied:
            if any(f'{name}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{name}.') for other in shared):
                raise UserError(f"NativeEnsemble: '{name}' is tied, but shared already has it or a part of it")
        self.student = network
        self.tau, self.predicts, self.tap, self.last_shared = tau, predict, tap, shared[-1]
        self._weight, self._ramp = Schedule(**weight), Schedule([0, ramp], [0, 1], by='progress')
        self._recorders = [Recorder(network, [self.last_shared, tap])]
        with preserved_rng():
            self.branches = nn.ModuleList(MODELS.build(_untrained(record)) for _ in range(branches - 1))
            for branch in self.branches:
                for name in shared:
                    parent, _, own = name.rpartition('.')
                    setattr(branch.get_submodule(parent), own, _Shared(name))
                for name in tied:
                    parent, _, own = name.rpartition('.')
                    setattr(branch.get_submodule(parent), own, _Tied(network, name))
                self._recorders.append(Recorder(branch, [tap]))
            size = self._feature_size()
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(size[1], branches),
                nn.BatchNorm1d(branches),
                nn.ReLU(),
                nn.Softmax(1),
            )

    def init_weights(self) -> None:
        """Initialise the student as it would be alone, then the branches, each by draws of its own."""
        self.student.init_weights()
        with preserved_rng():
            for branch in self.branches:
                branch.init_weights()  # type: ignore[operator]  # torch's list does not say of what

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Answer as the student or the ensemble does; in mode ``loss``, with the losses of all branches."""
        if mode == 'loss' and len(inputs) == 1:
            raise UserError(
                "NativeEnsemble: a batch of one image, which the gate's BatchNorm cannot learn from: give "
                'train_dataloader.drop_last=True, or another batch size'
            )
        if mode != 'loss' and self.predicts == 'branch':
            return self.student(inputs, data_samples, mode=mode)
        tasks, logits, feature = self._run(inputs, data_samples, 'loss' if mode == 'loss' else 'tensor')
        ensemble = (self.gate(feature)[..., None] * torch.stack(logits, 1)).sum(1)
        if mode == 'tensor':
            return ensemble
        if mode == 'predict':
            return self.student.head._get_predictions(ensemble, data_samples)
        weight = self.current_weight()
        losses: dict[str, Any] = {}
        for number, (task, own) in enumerate(zip(tasks, logits, strict=True)):
            kl = weight * kd_loss(own, ensemble, self.tau) if weight else own.new_zeros(())
            losses |= {f'{name}_{number}': value for name, value in (task | {'loss_kl': kl}).items()}
        task = self.student.head._get_loss(ensemble, data_samples)
        losses |= {f'{name}_ensemble': value for name, value in task.items()}
        check_finite(losses)
        return losses

    def current_weight(self) -> float:
        """Return the weight of the divergence at this point of training."""
        return self._weight() * exp(-5 * (1 - self._ramp()) ** 2)

    def deployable(self, state_dict: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights to keep: ``student``, as its plain model has them, and ``ensemble``, all of them."""
        return {'student': weights_of(state_dict, 'the checkpoint', 'student'), 'ensemble': state_dict}

    def _run(
        self, inputs: Tensor, data_samples: Sequence[Any] | None, mode: str
    ) -> tuple[list[Any], list[Tensor], Tensor]:
        """Run the student, and the branches from its shared feature; return answers, logits and that feature."""
        with self._recorders[0].recording() as features:
            answers = [self.student(inputs, data_samples, mode=mode)]
        (own,), (feature, *_) = features[self.tap], features[self.last_shared]
        logits = [own]
        for branch, recorder in zip(self.branches, self._recorders[1:], strict=True):
            place: Any = branch.get_submodule(self.last_shared)
            place.feature = feature
            try:
                # What is before that place and not shared, an activation perhaps, runs on one image and is forgotten.
                with recorder.recording() as features:
                    answers.append(branch(inputs[:1].clone(), data_samples, mode=mode))
            finally:
                place.feature = None
            logits += features[self.tap]
        return answers, logits, feature

    def _feature_size(self) -> torch.Size:
        """Run all branches once, to see that they fit together; return the size of the shared feature."""
        self.eval()
        try:
            with torch.enable_grad():
                feature = self._run(torch.zeros(1, 3, 64, 64), None, 'tensor')[2]
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"NativeEnsemble: a branch cannot go on from '{self.last_shared}' "
                f'({" ".join(str(error).split())}): shared must name, in the order of running, every '
                'module with weights up to it'
            ) from error
        self.train()
        if feature.dim() != 4:
            raise UserError(
                f"NativeEnsemble: the gate pools a map (N, C, H, W), but '{self.last_shared}' puts out "
                f'{tuple(feature.shape)}: let shared end in an earlier module'
            )
        return feature.shape
