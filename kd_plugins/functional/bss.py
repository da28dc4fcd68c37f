"""Boundary supporting samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checks import check_number, check_shapes
from .gram import distillation_loss, unit
from .kd import kd_loss


def base_samples(student: Tensor, teacher: Tensor, labels: Tensor, size: int = 64) -> Tensor:
    """Return the indices of the samples in the batch that are worth attacking.

    They are the samples that both networks classify correctly; where these are more than ``size``, the ``size`` with
    the largest ``sum_{k != y} (p_T,k - p_S,k)^2`` over the wrong classes, p being the softmax at temperature 1.

    Args:
        student: Logits (N, K); a sample with one that is not finite is left out.
        teacher: Logits (N, K).
        labels: Classes y, (N,) integers.
        size: Largest number of samples, from 1.

    Returns:
        Indices (M,), M from 0 to ``size``.

    Raises:
        ValueError: Logits of different shapes, or of fewer than two classes; a size below 1.
    """
    check_number('size', size, 1, whole=True)
    check_shapes(
        student.ndim == 2 and student.shape == teacher.shape and student.shape[1] > 1,
        'base_samples',
        'logits (N, K) of the same shape, of two classes or more',
        student,
        teacher,
        'give both networks the same images and the same classes',
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
    """Draw the class towards which each sample is to be moved, by the teacher's softmax over the wrong classes.

    Args:
        teacher: Logits (M, K).
        labels: Correct classes, (M,).

    Returns:
        Classes (M,), drawn by torch's generator of the logits' device.
    """
    # The correct class is left out before the softmax: after that of a confident teacher, the others are all 0.
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
    """Move samples to the decision boundary between their class and a target class of the teacher.

    With z the teacher's **logits** (not its probabilities, whose gradient vanishes where it is confident), y the label
    and k the target, ``x <- x + step_size (z_y - z_k + 1e-4) g / ||g||_2`` with ``g`` the gradient of ``z_k - z_y`` at
    x: the step shrinks towards the boundary. A sample stops once the teacher no longer predicts y, or where g is 0.

    Both step and clamp depend on how the inputs are normalised. Where they are stated for inputs divided by s_a, and
    the inputs here are divided by s, ``scale = s_a / s`` converts them: the attack is that of ``x / scale``.

    Autocast is off: at the boundary two logits are nearly equal, and bfloat16 resolves them to 1 in 256 only.

    Args:
        inputs: Samples x, (M, ...).
        labels: Classes y, (M,).
        targets: Classes k, (M,).
        teacher: Function of samples (m, ...) and of their indices (m,) among the M that returns logits (m, K), which
            can be differentiated with respect to the samples. It is called with those alone that have not stopped.
        steps: Largest number of steps, from 1.
        step_size: Length of a step as a share of the margin, in units of ``scale`` per logit, above 0.
        clamp: Largest absolute value of an entry, in units of ``scale``, above 0.
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
    active = torch.arange(len(samples), device=samples.device)  # indices of the samples that have not stopped
    with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        for _ in range(steps):
            x = samples[active].requires_grad_()
            logits = teacher(x, active)
            margin = logits.gather(1, labels[active, None]) - logits.gather(1, targets[active, None])
            (gradient,) = torch.autograd.grad(-margin.sum(), x)
            going_on = logits.detach().argmax(1) == labels[active]
            move = step_size * (margin.detach() + 1e-4) * unit((size * gradient).flatten(1))
            moved = (x.detach() + size * move.reshape(x.shape)).clamp(-limit, limit)
            active = active[going_on]
            if not len(active):
                break
            samples[active] = moved[going_on]
    return samples.clamp(-limit, limit)


def check_attack(steps: int, step_size: float, clamp: float, scale: float | Sequence[float]) -> None:
    """Check the options of :func:`boundary_attack`."""
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
        teacher: Logits t of the same shape; they get no gradient.
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
