"""Boundary supporting samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .common import check_number, distillation_loss, require, unit
from .kd import kd_loss


def base_samples(student: Tensor, teacher: Tensor, labels: Tensor, size: int = 64) -> Tensor:
    """Return the places in the batch of the samples that are worth an attack.

    Those that both networks classify right; of more than ``size`` of them, the ``size`` with the largest
    ``sum_{k != y} (p_T,k - p_S,k)^2`` over the wrong classes, p being the softmax at temperature 1.

    Args:
        student: Logits (N, K); a sample with one that is not finite is no base sample.
        teacher: Logits (N, K).
        labels: Classes y, (N,) integers.
        size: Number of samples at most, from 1.

    Returns:
        (M,) integers, M at most ``size``; none is possible.

    Raises:
        ValueError: Logits of different shapes, or of fewer than two classes; a size below 1.
    """
    check_number('size', size, 1, whole=True)
    require(
        student.ndim == 2 and student.shape == teacher.shape and student.shape[1] > 1,
        'base_samples',
        'logits (N, K) of the same shape, of two classes or more',
        student,
        teacher,
        'let both networks see the same images and tell the same classes apart',
    )
    student, teacher = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (student, teacher))
    right = (student.argmax(1) == labels) & (teacher.argmax(1) == labels)
    chosen = (right & student.isfinite().all(1) & teacher.isfinite().all(1)).nonzero()[:, 0]
    if len(chosen) > size:
        gap = (teacher[chosen].softmax(1) - student[chosen].softmax(1)).square()
        gap.scatter_(1, labels[chosen, None], 0)
        chosen = chosen[gap.sum(1).topk(size).indices]
    return chosen


def draw_targets(teacher: Tensor, labels: Tensor) -> Tensor:
    """Draw for each sample the class to be led to, by the teacher's softmax over the wrong classes.

    Args:
        teacher: Logits (M, K).
        labels: Right classes, (M,).

    Returns:
        (M,) classes, from torch's generator of the logits' device.
    """
    # Without the right class before the softmax: a sure teacher leaves nothing of the others after it.
    wrong = teacher.detach().float().scatter(1, labels[:, None], -torch.inf).softmax(1)
    return torch.multinomial(wrong, 1)[:, 0]


def boundary_attack(
    inputs: Tensor,
    labels: Tensor,
    targets: Tensor,
    teacher: Callable[[Tensor, Tensor], Tensor],
    steps: int = 10,
    step_size: float = 0.3,
    clamp: float = 2.5,
    scale: float | Sequence[float] = 1.0,
) -> Tensor:
    """Lead samples to where the teacher is about to take them for another class.

    With z the teacher's **logits** (not its probabilities, whose gradient vanishes where it is sure), y the label and k
    the target, ``x <- x + step_size (z_y - z_k + 1e-4) g / ||g||_2`` with ``g`` the gradient of ``z_k - z_y`` at x: the
    step shrinks towards the boundary. A sample stops once the teacher no longer says y, or where g is 0.

    Both step and clamp depend on how the inputs are normalised. Given for one that divides by s_a, while the inputs are
    divided by s, they are followed with ``scale = s_a / s``: the attack is that of ``x / scale``.

    Autocast is off: the samples wanted are those where two logits are nearly equal, and bfloat16 tells logits apart to
    1 in 256 only.

    Args:
        inputs: Samples x, (M, ...).
        labels: (M,).
        targets: (M,).
        teacher: Gives logits (m, K) for some samples (m, ...) and their places (m,) among the M; they can be
            differentiated in the samples. It is asked for those alone that have not stopped.
        steps: Number of steps at most, from 1.
        step_size: Share of the margin that a step goes, in units of ``scale`` per logit, above 0.
        clamp: No entry leaves [-clamp, clamp], in units of ``scale``, above 0.
        scale: Unit of step and clamp in units of the (normalised) inputs, above 0; or one for each channel of inputs
            (M, C, ...).

    Returns:
        Adversarial samples (M, ...), outside the graph.

    Raises:
        ValueError: A number is out of range, or there are not as many scales as channels.
    """
    check_attack(steps, step_size, clamp, scale)
    size = torch.as_tensor(scale, dtype=inputs.dtype, device=inputs.device)
    if size.ndim and len(size) != inputs.shape[1]:
        raise ValueError(f'scale: expected one for each of {inputs.shape[1]} channels, got {len(size)}')
    size = size.reshape(-1, *(1,) * (inputs.ndim - 2))
    limit = clamp * size
    samples = inputs.detach().clone()
    places = torch.arange(len(samples), device=samples.device)  # of those that go on
    with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        for _ in range(steps):
            x = samples[places].requires_grad_()
            logits = teacher(x, places)
            margin = logits.gather(1, labels[places, None]) - logits.gather(1, targets[places, None])
            (gradient,) = torch.autograd.grad(-margin.sum(), x)
            going = logits.detach().argmax(1) == labels[places]
            move = step_size * (margin.detach() + 1e-4) * unit((size * gradient).flatten(1))
            moved = (x.detach() + size * move.reshape(x.shape)).clamp(-limit, limit)
            places = places[going]
            if not len(places):
                break
            samples[places] = moved[going]
    return samples.clamp(-limit, limit)


def check_attack(steps: int, step_size: float, clamp: float, scale: float | Sequence[float]) -> None:
    """Check the numbers of :func:`boundary_attack`."""
    check_number('steps', steps, 1, whole=True)
    check_number('step_size', step_size, 0, strict=True)
    check_number('clamp', clamp, 0, strict=True)
    for one in scale if isinstance(scale, Sequence) else (scale,):
        check_number('scale', one, 0, strict=True)


@distillation_loss
def bss_loss(student: Tensor, teacher: Tensor, tau: float = 3.0) -> Tensor:
    """Divergence of the class probabilities on boundary supporting samples.

    ``KL(softmax(t / tau) || softmax(s / tau))``, summed over the classes and averaged over the samples, **without** the
    factor tau^2. The authors minimise the cross entropy, which is larger by the teacher's entropy, a constant here.

    Args:
        student: Logits s of the adversarial samples, (M, K).
        teacher: Logits t of the same shape; no gradient goes back to them.
        tau: Temperature, above 0.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: The shapes differ or hold nothing, or the temperature is not above 0.

    References:
        1. Heo et al.: Knowledge Distillation with Adversarial Samples Supporting Decision Boundary, AAAI 2019, arXiv
           1805.05532.
        2. github.com/bhheo/BSS_distillation
    """
    return kd_loss(student, teacher, tau) / tau**2
