"""What the losses compute with: their precision, products and Gram matrices, unit vectors, maps of one size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, interpolate, max_pool2d

Features = Tensor | Sequence[Tensor]
Loss = TypeVar('Loss', bound=Callable[..., Tensor])


def _flat(features: Features) -> Sequence[Tensor]:
    return (features,) if isinstance(features, Tensor) else features


def _map(function: Callable[[Tensor], Tensor], features: Features) -> Features:
    return function(features) if isinstance(features, Tensor) else tuple(map(function, features))


def distillation_loss(function: Loss, takes_half: bool = False) -> Loss:
    """Compute ``function(student, teacher, ...)`` in float32 (float64 stays), the teacher detached.

    Autocast is off, and so is a lower precision of products (TF32): a relational or Gram loss in half precision is
    off by tens of per cent. The teacher is detached, since one that needs gradients would keep its whole graph alive.
    A function that ``takes_half`` gets features of half precision as they are: their products are sums in float32.
    """

    @wraps(function)
    def loss(student: Features, teacher: Features, *args: Any, **kwargs: Any) -> Tensor:
        tensors = [*_flat(student), *_flat(teacher)]
        kinds = {x.dtype for x in tensors}
        dtype = reduce(torch.promote_types, kinds)
        if not takes_half or len(kinds) > 1:
            dtype = torch.promote_types(dtype, torch.float32)
        student, teacher = _map(lambda x: x.to(dtype), student), _map(lambda x: x.detach().to(dtype), teacher)
        with _without_autocast(tensors[0].device.type), products_of(torch.float32):
            return function(student, teacher, *args, **kwargs)

    return loss  # type: ignore[return-value]  # it has the signature of function


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # Such a context takes as long as a small loss, so that only one that changes something is made.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def match_size(first: Tensor, second: Tensor, mode: str = 'avg') -> tuple[Tensor, Tensor]:
    """Pool (..., H, W) maps to the smaller of the two heights and the smaller of the two widths.

    A map that is pooled becomes float32, if it was of half precision.

    Args:
        first: Maps.
        second: Maps.
        mode: ``'avg'`` or ``'max'``.
    """
    size = min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1])
    whole, other = (x if x.shape[-2:] == size else _pooled(as_float(x), size, mode) for x in (first, second))
    return whole, other


def _pooled(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if x.shape[-2:] == size:
        return x
    plain, adaptive = (avg_pool2d, adaptive_avg_pool2d) if mode == 'avg' else (max_pool2d, adaptive_max_pool2d)
    if x.shape[-2] % size[0] or x.shape[-1] % size[1]:
        return adaptive(x, size)
    # Cells of one size: on a GPU, only this way has a deterministic gradient.
    return plain(x, (x.shape[-2] // size[0], x.shape[-1] // size[1]))


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, C, H, W): bilinear (without aligned corners) where they grow, area-averaged where they shrink."""
    smaller = min(x.shape[-2], size[0]), min(x.shape[-1], size[1])
    x = _pooled(x, smaller, 'avg')
    return x if smaller == size else interpolate(x, size, mode='bilinear', align_corners=False)


def norm(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Return the L2 norm along the last axis; infinity, without gradient, where it is at most ``eps``."""
    length = torch.linalg.vector_norm(x, dim=-1)
    return length.masked_fill(length <= eps, torch.inf)


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale the vectors along the last axis to L2 norm 1; a vector of norm at most ``eps`` becomes 0.

    Such a vector has no direction. It gets no gradient either, where ``torch.nn.functional.normalize`` would multiply
    the incoming one by 1 / eps.
    """
    return x / norm(x, eps)[..., None]


def as_float(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


_PART = 2**16


def kept_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type to keep a gradient in until backward, where the scale comes that saves float16's small values."""
    return torch.float32 if dtype == torch.float16 else dtype


def laid_out_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of one shape in one memory layout: channels-last if the student's maps are, else contiguous."""
    plain = student.ndim != 4 or student.is_contiguous()
    layout = torch.contiguous_format if plain else torch.channels_last
    return student.contiguous(memory_format=layout), teacher.contiguous(memory_format=layout)


def by_channel(maps: Tensor) -> Tensor:
    """View maps (B, C, H, W) as (B C, H W) or, channels-last ones, as (B, H W, C): the positions are axis 1 in both."""
    return maps.flatten(2).flatten(0, 1) if maps.is_contiguous() else maps.movedim(1, -1).flatten(1, 2)


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape a few entries of the first axis at a time, a GPU's at once.

    A CPU's cache then holds what is computed from them. Large temporaries would be written to memory, new each time.
    """
    first = tensors[0]
    if not first.is_cpu or torch.compiler.is_compiling() or first.numel() <= _PART:
        return iter([tensors])
    size = max(1, _PART * len(first) // first.numel())
    return zip(*(x.split(size) for x in tensors), strict=True)


def float_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield copies of :func:`parts` in float32 (float64 stays), which may be changed.

    All are written to the memory of the first ones: new memory would not be in the cache.
    """
    buffers: list[Tensor] = []
    for part in parts(*tensors):
        if buffers:
            yield tuple(buffer[: len(x)].copy_(x) for buffer, x in zip(buffers, part, strict=True))
        else:
            buffers = [x.to(torch.promote_types(x.dtype, torch.float32), copy=True) for x in part]
            yield tuple(buffers)


def transformed() -> bool:
    """Return whether torch.func's transforms (vmap, grad) run what is called, where no number can be looked at."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def applied(function: type[torch.autograd.Function], plain: Callable[..., Tensor], *args: Any) -> Any:
    """Return what an autograd function gives or, inside torch.func's transforms, the same by plain operations.

    A function that those transforms take (``setup_context``) would cost every other call up to 0.1 ms.
    """
    return plain(*args) if transformed() else function.apply(*args)


class _HalfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher)
        squares = [torch.dot(s.sub_(t), s) for s, t in float_parts(student, teacher)]
        return torch.stack(squares).sum() / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        student, teacher = ctx.saved_tensors
        # The gradient may have one itself, or be asked for of several numbers at once.
        several = not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(grad)
        if several or torch.is_grad_enabled() or kept_type(student.dtype) != student.dtype:
            return (grad * (as_float(student) - as_float(teacher))).to(student.dtype), None
        gradient = torch.empty_like(student)
        for s, t, out in parts(student, teacher, gradient):
            torch.sub(s, t, out=out).mul_(grad)
        return gradient, None


def half_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the sum of the squares of s - t; half precision is subtracted in float32."""
    flat = ((x if x.is_contiguous() else x.movedim(1, -1)).flatten() for x in laid_out_alike(student, teacher))
    return applied(_HalfSquares, lambda s, t: (as_float(s) - as_float(t)).square().sum() / 2, *flat)


_PRECISIONS = {torch.bfloat16: {'mkldnn': 'bf16', 'cuda': 'tf32'}, torch.float16: {'mkldnn': 'ieee', 'cuda': 'tf32'}}


@contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Multiply float32 tensors with as many bits of each factor as ``dtype`` has; sums stay in float32.

    Factors that were converted from half precision lose nothing by that, and matrix units are several times as fast.
    Factors of float32 itself keep all bits, also where a program allows its other products fewer (TF32, bfloat16).
    Under torch.compile the program's own setting holds: changing it would break the graph.
    """
    if torch.compiler.is_compiling():
        yield
        return
    before = {}
    try:
        for name, value in _PRECISIONS.get(dtype, {'mkldnn': 'ieee', 'cuda': 'ieee'}).items():
            backend = getattr(torch.backends, name).matmul
            current = getattr(backend, 'fp32_precision', value)  # torch >= 2.9
            if current != value and (current, value) != ('none', 'ieee'):  # which is the same; writing takes time
                before[backend] = current
                backend.fp32_precision = value
        yield
    finally:
        for backend, value in before.items():
            backend.fp32_precision = value


# Elsewhere half precision is emulated, and slower than float32.
_HAS_BFLOAT16_UNITS = getattr(torch.cpu, '_is_avx512_bf16_supported', bool)()  # torch >= 2.6
_SMALL = 2**15


def _runs_in_half(x: Tensor, y: Tensor) -> bool:
    # Products that are too small for the matrix library round at every step.
    suited = _HAS_BFLOAT16_UNITS and x.is_cpu and x.dtype == y.dtype == torch.bfloat16 and x.ndim in (2, 3)
    return suited and x.shape[-2] * x.shape[-1] * y.shape[-1] >= _SMALL


def _times(x: Tensor, y: Tensor) -> Tensor:
    """Return the product x y in float32, or, of float64, in float64."""
    rows, length, columns = *x.shape[-2:], y.shape[-1]
    if not _runs_in_half(x, y) or 2 * rows * columns > (rows + columns) * length:
        return as_float(x) @ as_float(y)
    # The units sum in float32 and round the result to half precision; a second pass gives what that has cut off. Two
    # of them take less time than converting long factors to float32.
    high = x @ y
    low = (torch.addmm if x.ndim == 2 else torch.baddbmm)(high, x, y, beta=-1)
    return high.float().add_(low)


def _rounded_times(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the product x y in a type to which one of its factors may be rounded."""
    narrow = x.to(dtype), y.to(dtype)
    return narrow[0] @ narrow[1] if _runs_in_half(*narrow) else (as_float(x) @ as_float(y)).to(dtype)


def _in_layout_of(like: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # Channels-last maps are transposed matrices; a gradient laid out otherwise would be copied to be added to others.
    transposed = like.stride(-2) < like.stride(-1)
    return _rounded_times(y.mT, x.mT, like.dtype).mT if transposed else _rounded_times(x, y, like.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        with products_of(x.dtype):
            return _times(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        with products_of(x.dtype):
            return (
                _in_layout_of(x, grad, y.mT) if ctx.needs_input_grad[0] else None,
                _in_layout_of(y, x.mT, grad) if ctx.needs_input_grad[1] else None,
            )


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return the product x y, (..., N, M), of (..., N, D) and (..., D, M) of one type.

    Factors of half precision are multiplied at its speed, and the product is float32. Gradients have the type of x and
    y, and are computed from an incoming one that is rounded to it.
    """
    return applied(_Product, lambda x, y: as_float(x) @ as_float(y), x, y)


_LONG = 2**16


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exact: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.exact = exact
        with products_of(x.dtype):
            factor = as_float(x) if exact else x
            if x.shape[-1] <= _LONG:
                return _times(factor, factor.mT)
            # A float32 sum of millions of products is off by 1e-6, more than nearly equal samples differ.
            total = reduce(torch.add, (_times(part, part.mT).double() for part in factor.split(_LONG, -1)))
            dtype = factor.dtype if exact else torch.promote_types(x.dtype, torch.float32)
            return total.to(dtype, copy=True)  # traced, an intermediate as it is would have no gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = grad + grad.mT
        if ctx.exact:
            return (grad @ as_float(x)).to(x.dtype), None
        with products_of(x.dtype):
            return _rounded_times(grad, x, x.dtype), None


def gram(x: Tensor, exact: bool = False) -> Tensor:
    """Return the Gram matrix x x', (..., N, N), of (..., N, D); half precision is treated as by :func:`product`.

    That rounds a product of bfloat16 to 7e-6 of it, which counts where nearly equal rows are compared. With ``exact``
    it is as good as float32's, and takes up to 1.4 times the time. The gradient is one product. Autograd's own would
    take two, one of them along a long and thin transpose, which can cost several times the rest.
    """
    return applied(_Gram, lambda x, exact: as_float(x) @ as_float(x).mT, x, exact)


def refuse_second_derivative(losses: str) -> None:
    """Raise in a backward pass that is to be differentiated itself: a closed form would be a constant there."""
    if torch.is_grad_enabled():
        raise RuntimeError(f'{losses} no second derivative: call backward without create_graph')


def squared_norms(x: Tensor, products: Tensor) -> Tensor:
    """Return the diagonal of ``products``, the Gram matrix of the rows of x: their squared norms.

    Compiled, they come from x: inductor (torch 2.11) is wrong about the gradient of a diagonal, at times 1e8-fold.
    """
    if torch.compiler.is_compiling():
        return as_float(x).square().sum(-1)
    return products.diagonal(dim1=-2, dim2=-1)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative('PKD and ReviewKD have')
        (gradient,) = ctx.saved_tensors
        return (grad * gradient).to(ctx.dtype), None, None


def with_gradient(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Return ``value``, a scalar function of x, with its gradient in x, where a closed form is faster than autograd."""
    return _WithGradient.apply(x, value, gradient)
