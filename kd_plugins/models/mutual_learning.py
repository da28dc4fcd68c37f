"""Networks that learn from each other."""

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
from kd_plugins.errors import UserError
from kd_plugins.functional import kd_loss
from kd_plugins.functional.checks import check_choice, check_number
from kd_plugins.models.composite import Composite
from kd_plugins.registry import MODELS
from kd_plugins.utils.random import preserved_rng


@MODELS.register_module()
class MutualLearning(Composite):
    """Deep mutual learning (DML): a student and its peers, trained together on the same batches.

    Network i of K minimises ``L_i = task_i + weight / (K - 1) * sum_{j != i} KL(p_j || p_i)``, with ``task_i`` all the
    losses that it has by itself, p the class probabilities, and no gradient to p_j. The divergence is
    :func:`kd_plugins.functional.kd_loss`: summed over the classes, averaged over the batch, times ``tau`` squared.

    Network 0 is the student: it starts from the weights, and sees the batches, that it would have alone with the same
    seed, and it alone predicts. The log shows every network's losses with its number (``loss_0``, ``loss_kl_0``).

    ``update='joint'`` runs each network once a batch and steps them all together: as no gradient passes between them,
    this is K separate optimisers that step at the same time. Gradients that are clipped by their norm are clipped by
    that of all networks. ``update='alternating'`` is the paper's algorithm 1: the networks are updated one after
    another, each towards predictions that its peers, where already updated, make anew (by the statistics of the batch;
    their own running statistics stay). The authors' code does that too, but takes a new batch for each update and sums
    over the peers where the paper averages. Joint is the default: it costs K - 1 forward passes less, and works under
    data-parallel and with gradient accumulation.

    At the end of training ``ExportHook`` writes ``student.pth``, ``peer1.pth``, ...: the plain networks, to be scored
    with their plain configs (``tools/test.py configs/cifar10/resnet8.py .../dml/resnet8/student.pth``). The checkpoints
    ``epoch_N.pth`` hold all networks, and are scored with the config of the cohort.

    Args:
        student: Model record of the student: a classifier, a :class:`~kd_plugins.models.ReIDModel`.
        peers: How many more networks of the student's architecture there are, or their model records.
        tau: Temperature; 1 in the paper.
        weight: Of the divergence; 1 in the paper.
        update: ``'joint'`` or ``'alternating'``.
        tap: The module that puts out the logits, in every network.
        data_preprocessor: The student's, where its record has none (mmengine passes the config's here). All networks
            see the batch that it makes.

    Raises:
        UserError: There is no peer, a peer has a preprocessor of its own, there is no such tap; in training, if the
            networks tell different classes apart, a loss is not finite, or alternating updates meet data-parallel,
            gradient accumulation or a ``DistillationHook``.
        ValueError: A number or choice is out of range.

    Sources:
        1. Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, arXiv 1706.00384.
        2. github.com/YingZhangDUT/Deep-Mutual-Learning, ``train_models.py``.
    """

    _holders = ('student', 'peers')

    def __init__(
        self,
        student: Mapping[str, Any],
        peers: int | Sequence[Mapping[str, Any]] = 1,
        tau: float = 1.0,
        weight: float = 1.0,
        update: str = 'joint',
        tap: str = 'head.fc',
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        check_number('tau', tau, 0, strict=True)
        check_number('weight', weight, 0)
        check_choice('update', update, ('joint', 'alternating'))
        record = dict(student)
        record.setdefault('data_preprocessor', data_preprocessor)
        if not isinstance(peers, Sequence):
            check_number('peers', peers, 1, whole=True)
            peers = [record] * peers
        others = [dict(peer) for peer in peers]
        if not others:
            raise UserError('MutualLearning needs at least one peer, got peers=[]: give their number or their records')
        if any(
            peer.setdefault('data_preprocessor', record['data_preprocessor']) != record['data_preprocessor']
            for peer in others
        ):
            raise UserError(
                "MutualLearning: all networks see the student's batch: leave data_preprocessor out of the "
                "peers' records"
            )
        network = MODELS.build(copy.deepcopy(record))
        super().__init__(network.data_preprocessor)
        self.student = network
        with preserved_rng():
            self.peers = nn.ModuleList(MODELS.build(copy.deepcopy(peer)) for peer in others)
        self.tau, self.weight, self.update, self.tap = tau, weight, update, tap
        self._recorders = [Recorder(network, [tap]) for network in self._networks]

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.student, *self.peers]

    def init_weights(self) -> None:
        """Initialise the student as it would be alone, then the peers, each by draws of its own."""
        self.student.init_weights()
        with preserved_rng():
            for peer in self.peers:
                peer.init_weights()  # type: ignore[operator]  # torch's list does not say of what

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Answer as the student; in mode ``loss``, with the losses of all networks.

        Raises:
            UserError: As the class does in training.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        if self.update == 'alternating':  # train_step does not come here, a data-parallel wrapper does
            raise UserError(
                "MutualLearning: update='alternating' works in train_step, which data-parallel leaves out: "
                "use update='joint', or one process"
            )
        tasks, logits = self._learn(inputs, data_samples)
        losses = {
            name: loss for number in range(len(tasks)) for name, loss in self._losses(number, tasks, logits).items()
        }
        check_finite(losses)
        return losses

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Update all networks on a batch; see the class.

        Raises:
            UserError: As the class does in training.
        """
        if self.update == 'joint':
            return super().train_step(data, optim_wrapper)
        if getattr(optim_wrapper, '_accumulative_counts', None) != 1:
            raise UserError(
                "MutualLearning: update='alternating' needs one optimiser without gradient accumulation: "
                "leave accumulative_counts out, or use update='joint'"
            )
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            # What a network puts out depends on no other network's weights: it still holds when its turn comes.
            tasks, logits = self._learn(data['inputs'], data['data_samples'])
        logged: dict[str, Any] = {}
        for number, network in enumerate(self._networks):
            losses = self._losses(number, tasks, logits)
            check_finite(losses)
            logged |= losses
            optim_wrapper.update_params(self.parse_losses(losses)[0])  # the others have no gradient and stay
            if network is not self._networks[-1]:
                with optim_wrapper.optim_context(self):
                    logits[number] = self._look_again(number, data['inputs'], data['data_samples'])
        return self.parse_losses(logged)[1]

    def deployable(self, state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Split the weights by network: ``student``, ``peer1``, ..., each as its plain model has them."""
        prefixes = {'student': 'student'} | {f'peer{n + 1}': f'peers.{n}' for n in range(len(self.peers))}
        return {name: weights_of(state_dict, 'the checkpoint', prefix) for name, prefix in prefixes.items()}

    def _learn(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Run every network once; return the losses of each by itself, and its logits."""
        with self._recorders[0].recording() as features:
            tasks = [self.student(inputs, data_samples, mode='loss')]
        logits = [*features[self.tap]]
        with preserved_rng():  # the student's own draws (dropout) are those that it would have alone
            for peer, recorder in zip(self.peers, self._recorders[1:], strict=True):
                with recorder.recording() as features:
                    tasks.append(peer(inputs, data_samples, mode='loss'))
                logits += features[self.tap]
        shapes = [tuple(x.shape) for x in logits]
        if len(logits) != len(tasks) or len(set(shapes)) > 1:
            raise UserError(
                f"MutualLearning: '{self.tap}' must put out logits of the same shape in all networks, got "
                f'{shapes}: tap the last layer, and let all tell the same classes apart'
            )
        return tasks, logits

    @torch.no_grad()
    def _look_again(self, number: int, inputs: Tensor, data_samples: Sequence[Any]) -> Tensor:
        """Return a network's logits by its present weights; its BatchNorm statistics count each batch once."""
        network = self._networks[number]
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with self._recorders[number].recording() as features:
            functional_call(network, buffers, (inputs, data_samples), {'mode': 'tensor'})
        return features[self.tap][0]

    def _losses(self, number: int, tasks: Sequence[Mapping[str, Any]], logits: Sequence[Tensor]) -> dict[str, Any]:
        """Return one network's losses, with its number behind their names."""
        losses = dict(tasks[number])
        if 'loss_kl' in losses:
            raise UserError(f"MutualLearning: network {number} already has a 'loss_kl': rename that term")
        own, others = logits[number], [x for n, x in enumerate(logits) if n != number]
        losses['loss_kl'] = own.new_zeros(())
        if self.weight:
            losses['loss_kl'] = self.weight / len(others) * sum(kd_loss(own, x, self.tau) for x in others)
        return {f'{name}_{number}': value for name, value in losses.items()}
