"""What every loss keeps to: float32 inside, the teacher outside the graph."""

from shutil import which

import pytest
import torch
from loss_table import LOSSES, TOLERANCES

from kd_plugins.functional import gram

# Their gradient is of closed form, which has none itself. That of nst-gan is the value's reverse.
ONCE = ('pkd', 'reviewkd', 'rkd', 'rkd-angle', 'rkd-code', 'nst-gaussian', 'crd')

losses = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)


@pytest.fixture
def student():
    return torch.randn(8, 6, 5, 5)


@pytest.fixture
def teacher():
    return torch.randn(8, 6, 5, 5)


@losses
def test_autocast_changes_nothing(loss, student, teacher):
    expected = loss(student, teacher)
    with torch.autocast(student.device.type, dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def _check_float32(loss, student, teacher, scale=1.0):
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    (value * scale).backward()
    assert value.dtype == torch.float32
    wide = student.detach().float().requires_grad_()
    expected = loss(wide, teacher.float())
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    assert student.grad.dtype == student.dtype
    assert (student.grad.float() / scale - wide.grad).norm() <= 2 * torch.finfo(student.dtype).eps * wide.grad.norm()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@losses
def test_half_inputs_are_computed_in_float32(loss, student, teacher, dtype):
    # All that is lost is what the inputs have lost: the loss of the rounded inputs is float32's, up to the order of
    # its sums, and the gradient is rounded on its way only.
    _check_float32(loss, student.to(dtype), teacher.to(dtype))


@pytest.mark.parametrize('name', ['kd', 'cwd', 'mgd', 'fitnet'])
def test_a_scale_saves_small_gradients_of_float16(name):
    # Their gradient is computed with the value, and scaled later; most of it is below float16's smallest number here,
    # and the scale above its largest.
    teacher = torch.randn(4, 32, 24, 24).half()
    student = teacher + 0.01 * torch.randn_like(teacher)
    _check_float32(LOSSES[name], student, teacher, scale=2.0**18)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', ['sp', 'fsp'])
def test_products_of_long_bfloat16_factors_are_float32s(name, layout):
    # Of this length they run on bfloat16 units, where the processor has them.
    student, teacher = torch.randn(2, 16, 16, 16, 16).relu().bfloat16()
    _check_float32(LOSSES[name], *(x.contiguous(memory_format=layout) for x in (student, teacher)))


@losses
def test_bf16_features_under_autocast_are_near(loss, student, teacher):
    # bf16 keeps 8 bits, 0.4 %, of each feature; these losses are squares of differences: a few per cent at the most.
    with torch.autocast(student.device.type, dtype=torch.bfloat16):
        value = loss(student.bfloat16(), teacher.bfloat16())
    torch.testing.assert_close(value, loss(student, teacher), rtol=0.02, atol=0)


@losses
def test_float64_stays(loss, student, teacher):
    assert loss(student.double(), teacher).dtype == torch.float64
    assert loss(student.double(), teacher.double()).dtype == torch.float64


@losses
def test_teacher_stays_outside_the_graph(loss, student, teacher):
    weight = torch.ones((), requires_grad=True)
    student.requires_grad_()
    loss(student, teacher * weight).backward()
    assert weight.grad is None
    assert student.grad.any()
    student.grad = None
    with pytest.raises(RuntimeError, match='does not require grad'):
        loss(student.detach(), teacher * weight).backward()


@losses
def test_inputs_are_left_alone(loss, student, teacher):
    copies = student.clone(), teacher.clone()
    loss(student.requires_grad_(), teacher).backward()
    assert torch.equal(student.detach(), copies[0])
    assert torch.equal(teacher, copies[1])


@losses
def test_channels_last_is_the_same(loss, student, teacher):
    value = loss(student.to(memory_format=torch.channels_last), teacher.to(memory_format=torch.channels_last))
    torch.testing.assert_close(value, loss(student, teacher))


LAYOUTS = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize('name', ['fitnet', 'mgd', 'cwd', 'cwd-4'])
@pytest.mark.parametrize('own', LAYOUTS)
@pytest.mark.parametrize('other', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_parts_of_large_maps_are_the_whole(name, own, other, dtype, student, teacher, monkeypatch):
    """Those of a CPU, in every pair of layouts; some parts are smaller than others."""
    loss, found = LOSSES[name], []
    for size in (2**16, 170):
        monkeypatch.setattr(gram, '_PART', size)
        x = student.to(dtype).to(memory_format=own).requires_grad_()
        value = loss(x, teacher.to(dtype).to(memory_format=other))
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(*found)
    assert found[1][1].stride() == student.to(memory_format=own).stride()


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in (*ONCE, 'nst-gan')])
def test_a_gradient_has_a_gradient(name):
    student, teacher = (torch.randn(3, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradgradcheck(lambda s: LOSSES[name](s, teacher) ** 2, (student.requires_grad_(),))


@pytest.mark.parametrize('name', ['kd', 'kd-sigmoid', 'fitnet', 'mgd', 'cwd', 'at', 'sp', 'fsp', 'pkt', 'nst-gan'])
def test_gradients_of_each_batch_by_torch_func(name):
    student, teacher = (torch.randn(3, 2, 4, 3, 3, dtype=torch.float64) for _ in range(2))
    leaf = student.clone().requires_grad_()
    torch.stack([LOSSES[name](s, t) for s, t in zip(leaf, teacher, strict=True)]).sum().backward()
    torch.testing.assert_close(torch.func.grad(LOSSES[name])(student[0], teacher[0]), leaf.grad[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(LOSSES[name]))(student, teacher), leaf.grad)


@losses
def test_nan_is_not_hidden(loss, student, teacher):
    student[3, 2, 1, 1] = torch.nan
    assert loss(student, teacher).isnan()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('name', ['sp', 'fsp'])
def test_the_precision_of_other_products_is_left_alone(name, dtype, student, teacher):
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    student = student.to(dtype).requires_grad_()
    LOSSES[name](student, teacher.to(dtype)).backward()
    assert [backend.fp32_precision for backend in backends] == before
    with pytest.raises(ValueError, match='batch'):
        LOSSES[name](student, teacher[:2].to(dtype))
    assert [backend.fp32_precision for backend in backends] == before


@losses
def test_a_lower_precision_of_other_products_costs_nothing(loss, low_precision):
    student, teacher = torch.randn(128, 16, 16, 16), torch.randn(128, 16, 16, 16)
    torch.testing.assert_close(
        loss(student, teacher).double(),
        loss(student.double(), teacher.double()),
        rtol=TOLERANCES[torch.float32][0],
        atol=0,
    )


def test_losses_are_traced_in_one_piece(student, teacher):
    several = [LOSSES[name] for name in ('sp', 'kd', 'kd-standardized', 'kd-sigmoid', 'dkd', 'nkd', 'dist')]
    explained = torch._dynamo.explain(lambda s, t: sum(loss(s, t) for loss in several))(student, teacher)
    assert explained.graph_break_count == 0, explained.break_reasons


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@losses
def test_a_traced_gradient_is_the_same(loss, dtype, monkeypatch):
    monkeypatch.setattr(gram, '_LONG', 50)
    student, teacher = torch.randn(2, 8, 3, 5, 5, dtype=dtype).unbind()
    found = []
    for function in (loss, torch.compile(loss, backend='eager')):
        leaf = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf, teacher), leaf)
        found.append(gradient)
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() <= TOLERANCES[dtype][1] * found[0].norm()


@pytest.mark.skipif(not which('g++'), reason='inductor compiles C++')
@pytest.mark.parametrize(('name', 'shape'), [('nst', (4, 6, 5, 5)), ('pkt', (64, 8, 4, 4))])
def test_the_usual_backend_compiles_the_gradient_of_norms(name, shape):
    """By inductor a diagonal has a wrong gradient; NST has one on maps of more positions than channels."""
    student, teacher = torch.randn(2, *shape).unbind()
    found = []
    for function in (LOSSES[name], torch.compile(LOSSES[name])):
        leaf = student.clone().requires_grad_()
        found += torch.autograd.grad(function(leaf, teacher), leaf)
    assert (found[1] - found[0]).norm() <= 1e-5 * found[0].norm()


@pytest.mark.parametrize('name', ONCE)
def test_a_second_derivative_that_would_be_zero_is_refused(name):
    student, teacher = torch.randn(2, 2, 3, 4, 4).unbind()
    student.requires_grad_()
    value = LOSSES[name](student, teacher) + LOSSES['fitnet'](student, teacher)
    with pytest.raises(RuntimeError, match='no second derivative'):
        torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize('name', ['kd', 'fitnet', 'mgd', 'cwd'])
def test_a_gradient_is_asked_for_of_several_numbers_at_once(name):
    student, teacher = torch.randn(2, 4, 3, 5, 5)
    student.requires_grad_()
    value = LOSSES[name](student, teacher)
    both, ones = torch.stack([value, value]), torch.eye(2)
    (both,) = torch.autograd.grad(both, student, ones, is_grads_batched=True, retain_graph=True)
    (once,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(both, torch.stack([once, once]))
