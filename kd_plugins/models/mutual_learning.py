"""Deep mutual learning: networks that learn from each other."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.func import functional_call

from kd_plugins.checkpoint import weights_of
from kd_plugins.distillation.distillation import check_finite
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.distillation.samples import note_several_classes
from kd_plugins.distillation.schedule import running
from kd_plugins.errors import UserError
from kd_plugins.functional import kd_loss
from kd_plugins.functional.checks import check_choice, check_number
from kd_plugins.models.composite import Composite, config_of
from kd_plugins.registry import MODELS
from kd_plugins.utils.random import preserved_rng


@MODELS.register_module()
class MutualLearning(Composite):
    """Deep mutual learning (DML): a student and its peers, trained together on the same batches.

    Network i of K minimises ``L_i = task_i + weight / (K - 1) * sum_{j != i} KL(p_j || p_i)``, where ``task_i`` is the
    sum of the network's own losses, p are class probabilities, and p_j gets no gradient. The divergence is
    :func:`kd_plugins.functional.kd_loss`: summed over the classes, averaged over the batch, times ``tau`` squared.

    Network 0 is the student. Its initial weights and its batches are those of a run of the student alone with the same
    seed, and only the student predicts. The log shows the losses of every network with its index (``loss_0``,
    ``loss_kl_0``).

    ``update='joint'`` runs each network once per batch and updates all of them in one step. No gradient flows between
    networks, so this equals K separate optimisers that step at the same time; clipping by norm uses the norm over all
    networks. ``update='alternating'`` is the paper's algorithm 1: the networks are updated one after another, each
    towards predictions that its already updated peers compute again (with the statistics of the batch; their running
    statistics do not change). The authors' code does so too, but uses a new batch for each update and sums over the
    peers where the paper averages. Joint is the default: it needs K - 1 fewer forward passes, and works under
    data-parallel and with gradient accumulation.

    At the end of training ``ExportHook`` writes ``student.pth``, ``peer1.pth``, ...: the plain networks, which are
    tested with their plain configs (``tools/test.py configs/cifar10/resnet8.py .../dml/resnet8/student.pth``). The
    checkpoints ``epoch_N.pth`` hold all networks, and are tested with the config of the whole model.

    Args:
        student: Config dict of the student: a classifier, or a :class:`~kd_plugins.models.ReIDModel`.
        peers: Number of further networks of the student's architecture, or their config dicts.
        tau: Temperature; 1 in the paper.
        weight: Weight of the divergence; 1 in the paper.
        update: ``'joint'`` or ``'alternating'``.
        tap: Module that outputs the logits, in every network.
        use_sigmoid: Whether the classes are independent, as where an image has several; see
            :func:`~kd_plugins.functional.kd_loss`.
        data_preprocessor: Config dict of the student's preprocessor, where ``student`` has none (mmengine passes the
            config's here). All networks get the preprocessed batch.

    Raises:
        UserError: There is no peer, a peer has a preprocessor of its own, or the tap does not exist; in training: the
            networks have different numbers of classes, a loss is not finite, or alternating updates are combined with
            data-parallel, gradient accumulation or a ``DistillationHook``.
        ValueError: A number or choice is out of range.

    References:
        1. Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, arXiv 1706.00384.
        2. github.com/YingZhangDUT/Deep-Mutual-Learning, ``train_models.py``.
    """

    _others = 'peers'

    def __init__(
        self,
        student: Mapping[str, Any],
        peers: int | Sequence[Mapping[str, Any]] = 1,
        tau: float = 1.0,
        weight: float = 1.0,
        update: str = 'joint',
        tap: str = 'head.fc',
        use_sigmoid: bool = False,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        check_number('tau', tau, 0, strict=True)
        check_number('weight', weight, 0)
        check_choice('update', update, ('joint', 'alternating'))
        config = config_of(student, data_preprocessor)
        preprocessor = dict(data_preprocessor=config['data_preprocessor'])
        if not isinstance(peers, Sequence):
            check_number('peers', peers, 1, whole=True)
            peers = [config] * peers
        others = [preprocessor | dict(peer) for peer in peers]
        if not others:
            raise UserError(
                'MutualLearning needs at least one peer, got peers=[]: give their number or their config dicts'
            )
        if any(peer['data_preprocessor'] != config['data_preprocessor'] for peer in others):
            raise UserError(
                "MutualLearning: all networks get the student's batch: remove data_preprocessor from the "
                "peers' config dicts"
            )
        super().__init__(config)
        with preserved_rng():
            self.peers = nn.ModuleList(MODELS.build(copy.deepcopy(peer)) for peer in others)
        self.tau, self.weight, self.update, self.tap, self.use_sigmoid = tau, weight, update, tap, use_sigmoid
        self._recorders = [Recorder(network, [tap]) for network in self._networks]
        self._steps = 0  # without a runner, which counts them otherwise

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Return what the student returns; in mode ``loss``, the losses of all networks.

        Raises:
            UserError: As the class in training.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        if self.update == 'alternating':  # train_step does not call this, a data-parallel wrapper does
            raise UserError(
                "MutualLearning: update='alternating' works in train_step, which data-parallel does not call: "
                "use update='joint', or one process"
            )
        tasks, logits = self._run_networks(inputs, data_samples)
        losses = {
            name: loss for index in range(len(tasks)) for name, loss in self._losses(index, tasks, logits).items()
        }
        check_finite(losses)
        return losses

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Update all networks on a batch; see the class.

        Raises:
            UserError: As the class in training.
        """
        if self.update == 'joint':
            return super().train_step(data, optim_wrapper)
        if getattr(optim_wrapper, '_accumulative_counts', None) != 1:
            raise UserError(
                "MutualLearning: update='alternating' needs one optimiser without gradient accumulation: "
                "remove accumulative_counts, or use update='joint'"
            )
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            # A network's output does not depend on the others' weights: it stays valid while these are updated.
            tasks, logits = self._run_networks(data['inputs'], data['data_samples'])
        logged: dict[str, Any] = {}
        for index in range(len(tasks)):
            losses = self._losses(index, tasks, logits)
            check_finite(losses)
            logged |= losses
            optim_wrapper.update_params(self.parse_losses(losses)[0])  # the other networks have no gradient
            if index < len(tasks) - 1:
                with optim_wrapper.optim_context(self):
                    logits[index] = self._updated_logits(index, data['inputs'], data['data_samples'])
        return self.parse_losses(logged)[1]

    def deployable(self, state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the weights of each network, ``student``, ``peer1``, ..., with the keys of its plain model."""
        prefixes = {'student': 'student'} | {f'peer{n + 1}': f'peers.{n}' for n in range(len(self.peers))}
        return {name: weights_of(state_dict, 'the checkpoint', prefix) for name, prefix in prefixes.items()}

    def _run_networks(
        self, inputs: Tensor, data_samples: Sequence[Any] | None
    ) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Run every network once; return the losses of the task and the logits of each."""
        if not self._steps and not self.use_sigmoid:
            note_several_classes(data_samples, 'MutualLearning', 'use_sigmoid=True')
        with self._recorders[0].recording() as features:
            tasks = [self.student(inputs, data_samples, mode='loss')]
        logits = [*features[self.tap]]
        with preserved_rng():  # the student's later random draws (dropout) are those of the student alone
            # And the peers' draws change from step to step where those of the student do not.
            self._steps += 1
            hub = running()
            iteration = self._steps if hub is None else hub.get_info('iter', self._steps)
            torch.manual_seed((torch.initial_seed() + 1_000_003 * (1 + iteration)) % 2**63)
            for peer, recorder in zip(self.peers, self._recorders[1:], strict=True):
                with recorder.recording() as features:
                    tasks.append(peer(inputs, data_samples, mode='loss'))
                logits += features[self.tap]
        shapes = [tuple(x.shape) for x in logits]
        if len(logits) != len(tasks) or len(set(shapes)) > 1:
            raise UserError(
                f"MutualLearning: '{self.tap}' must output logits of the same shape in all networks, got "
                f'{shapes}: tap the last layer, and give all networks the same classes'
            )
        return tasks, logits

    @torch.no_grad()
    def _updated_logits(self, index: int, inputs: Tensor, data_samples: Sequence[Any]) -> Tensor:
        """Return the logits of a network after its update, without a second update of its BatchNorm statistics."""
        network = self._networks[index]
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with self._recorders[index].recording() as features:
            functional_call(network, buffers, (inputs, data_samples), {'mode': 'tensor'})
        return features[self.tap][0]

    def _losses(self, index: int, tasks: Sequence[Mapping[str, Any]], logits: Sequence[Tensor]) -> dict[str, Any]:
        """Return the losses of one network, with its index appended to their names."""
        losses = dict(tasks[index])
        if 'loss_kl' in losses:
            raise UserError(f"MutualLearning: network {index} already has a 'loss_kl': rename that term")
        own, others = logits[index], [x for i, x in enumerate(logits) if i != index]
        losses['loss_kl'] = own.new_zeros(())
        if self.weight:
            kls = [kd_loss(own, x, self.tau, use_sigmoid=self.use_sigmoid) for x in others]
            losses['loss_kl'] = self.weight / len(others) * sum(kls)
        return {f'{name}_{index}': value for name, value in losses.items()}
