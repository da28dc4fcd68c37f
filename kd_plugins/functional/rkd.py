"""Relations between the samples of a batch: distances and angles."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from .checks import check_batch, check_choice, check_number
from .gram import distillation_loss, gram, refuse_second_derivative, squared_norms, unit

CONVENTIONS = ('paper', 'code')

# Cosines taken at a time: as many as a CPU's cache holds; on other devices fewer calls matter more.
_BLOCK_ELEMENTS, _LARGE_BLOCK = 2**19, 2**24

_LEAST = 1e-24  # squared distance whose root has an inverse that float32 holds to the third power


def _squared_distances(student: Tensor, teacher: Tensor, convention: str, normalize: bool) -> tuple[Tensor, Tensor]:
    check_choice('convention', convention, CONVENTIONS)
    check_batch('rkd_loss', student, teacher)
    own, other = (_pairwise(unit(x) if normalize else x) for x in (student.flatten(1), teacher.flatten(1)))
    return own, other


def _pairwise(x: Tensor) -> Tensor:
    eps = torch.finfo(x.dtype).eps
    lengths = torch.linalg.vector_norm(x.detach(), dim=1)
    # Around the mean, the Gram matrix is no larger than the distances it has to resolve.
    x = x - x.mean(0)
    products = gram(x)
    norms = squared_norms(x, products)
    norms = norms[:, None] + norms
    distances = norms - 2 * products
    # Samples nearer than rounding can resolve, of the products or of the embeddings, are one point, as each is with
    # itself; and so are those whose gradient would not be finite.
    least = (4 * eps * (lengths[:, None] + lengths)).square_().clamp_min_(_LEAST)
    return distances.masked_fill(distances <= torch.maximum(32 * eps * norms, least), 0)


def _inverse_root(squares: Tensor) -> Tensor:
    # 0 for 0, and no gradient there.
    return squares.masked_fill(squares == 0, torch.inf).rsqrt()


def _relative(squares: Tensor) -> Tensor:
    distances = squares * _inverse_root(squares)
    size = len(distances)
    mean = distances.sum() / max(size * (size - 1), 1)
    return distances / mean.clamp_min(torch.finfo(mean.dtype).tiny)


def _distance_term(student: Tensor, teacher: Tensor, convention: str) -> Tensor:
    size = len(student)
    total = smooth_l1_loss(_relative(student), _relative(teacher), reduction='sum')
    return total / (size**2 if convention == 'code' else max(size * (size - 1), 1))


class _AngleSum(torch.autograd.Function):
    """Sum of the Huber loss over all triplets, from the squared distances of either network.

    The law of cosines gives the angle at sample a: ``cos_ajk = (D_aj + D_ak - D_jk) r_aj r_ak / 2`` with
    ``r = D^(-1/2)``. The gradient is summed up along with the value, so that nothing of size B^3 is kept: with
    ``h = Huber'(cos_S - cos_T)`` it is ``r_aj sum_k h_ajk r_ak - r_aj^2 sum_k h_ajk cos_ajk`` for D_aj as a leg and
    ``-1/2 sum_a h_ajk r_aj r_ak`` for D_jk as the side across.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        size = len(student)
        total, legs, across = student.new_zeros(()), torch.empty_like(student), torch.zeros_like(student)
        elements = _BLOCK_ELEMENTS if student.device.type == 'cpu' else _LARGE_BLOCK
        block = max(elements // size**2, 1)
        for anchors in (slice(start, start + block) for start in range(0, size, block)):
            cos, r = _cosines(student, anchors)
            difference = cos - _cosines(teacher, anchors)[0]
            # A triplet has three different samples.
            difference.diagonal(dim1=1, dim2=2).zero_()
            h = difference.clamp(-1, 1)
            total += torch.dot(h.flatten(), difference.sub_(h, alpha=0.5).flatten())
            legs[anchors] = r * ((h @ r[:, :, None])[:, :, 0] - r * cos.mul_(h).sum(2))
            across += h.mul_(r[:, :, None]).mul_(r[:, None, :]).sum(0)
        ctx.save_for_backward(legs - across / 2)
        return total.clone()  # traced, what was written to would have no gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative('RKD-A has')
        return grad * ctx.saved_tensors[0], None


def _cosines(squares: Tensor, anchors: slice) -> tuple[Tensor, Tensor]:
    legs = squares[anchors]
    r = _inverse_root(legs)
    cos = (legs[:, :, None] + legs[:, None, :]).sub_(squares)
    return cos.mul_((r / 2)[:, :, None]).mul_(r[:, None, :]), r


def _angle_term(student: Tensor, teacher: Tensor, convention: str) -> Tensor:
    size = len(student)
    total = _AngleSum.apply(student, teacher)
    return total / (size**3 if convention == 'code' else max(size * (size - 1) * (size - 2), 1))


@distillation_loss
def rkd_distance_loss(student: Tensor, teacher: Tensor, convention: str = 'paper', normalize: bool = False) -> Tensor:
    """Difference of the relative distances between samples, RKD-D.

    ``psi_ij = ||x_i - x_j||_2 / mu``, mu the mean over the network's **own** pairs i != j of the batch; the Huber loss
    (delta 1) of ``psi_S - psi_T``, summed over the pairs and divided by their number, N (N - 1) (``'paper'``), or by
    N^2 (``'code'``, the authors' program, which averages in the N zeros of the diagonal). So ``'code'`` is
    (N - 1) / N of ``'paper'``.

    Args:
        student: Embeddings (N, ...), flattened.
        teacher: Embeddings (N, ...) of any other size; they get no gradient.
        convention: ``'paper'`` or ``'code'``.
        normalize: Scale the embeddings of both networks to L2 norm 1 first. The paper does not; the authors' program
            for classifiers does (``run_distill_classification.py`` of [2], with weights 25 and 50 beside Hinton's loss
            of weight 1), and so does [3].

    Returns:
        Scalar without unit, unchanged by moving or scaling all embeddings of a network; 0 for N = 1. Two samples
        nearer than rounding can resolve count as one point and get no gradient from their distance.

    Raises:
        ValueError: Different or empty batches, or an unknown convention.

    References:
        1. Park et al.: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068.
        2. github.com/lenscloth/RKD
        3. github.com/NeurAI-Lab/InBiaseD, ``kd_lib/losses/kd_losses.py``.
    """
    return _distance_term(*_squared_distances(student, teacher, convention, normalize), convention)


@distillation_loss
def rkd_angle_loss(student: Tensor, teacher: Tensor, convention: str = 'paper', normalize: bool = False) -> Tensor:
    """Difference of the angles that triplets of samples form, RKD-A.

    The cosine of the angle at x_i between x_j and x_k; the Huber loss (delta 1) of the two networks' cosines, summed
    over the triplets of different samples and divided by their number, N (N - 1) (N - 2) (``'paper'``), or by N^3
    (``'code'``, the authors' program, where the other triplets count as zeros). So ``'code'`` is
    (N - 1) (N - 2) / N^2 of ``'paper'``. Where two samples of a network are one point, the cosine is 0.

    Memory grows with N^2, time with N^3. It has no second derivative.

    Args:
        student: Embeddings (N, ...), flattened.
        teacher: Embeddings (N, ...) of any other size; they get no gradient.
        convention: ``'paper'`` or ``'code'``.
        normalize: Scale the embeddings of both networks to L2 norm 1 first, see `rkd_distance_loss`.

    Returns:
        Scalar without unit, unchanged by moving, turning or scaling all embeddings of a network; 0 for N < 3.

    Raises:
        ValueError: Different or empty batches, or an unknown convention.

    References:
        Those of `rkd_distance_loss`.
    """
    return _angle_term(*_squared_distances(student, teacher, convention, normalize), convention)


@distillation_loss
def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    convention: str = 'paper',
    normalize: bool = False,
) -> Tensor:
    """``distance_weight * RKD-D + angle_weight * RKD-A``; a part of weight 0 is left out.

    The weights 25 and 50 are the authors', for their means (``convention='code'``).

    The arguments, errors and references are those of `rkd_distance_loss` and `rkd_angle_loss`; a weight below 0 is an
    error, too.
    """
    check_number('distance_weight', distance_weight, 0)
    check_number('angle_weight', angle_weight, 0)
    squares = _squared_distances(student, teacher, convention, normalize)
    terms = [(distance_weight, _distance_term), (angle_weight, _angle_term)]
    parts = [weight * term(*squares, convention) for weight, term in terms if weight]
    return sum(parts, squares[0].new_zeros(()))
