"""What every loss keeps to: float32 inside, the teacher outside the graph."""

import pytest
import torch

from kd_plugins import functional as F

MAPS = {
    'fitnet': F.fitnet_loss,
    'at': F.at_loss,
    'at-code': lambda s, t: F.at_loss(s, t, 'code'),
    'sp': F.sp_loss,
    'rkd': F.rkd_loss,
    'rkd-distance': F.rkd_distance_loss,
    'rkd-angle': F.rkd_angle_loss,
    'nst': F.nst_loss,
    'nst-linear': lambda s, t: F.nst_loss(s, t, 'linear'),
    'nst-gaussian': lambda s, t: F.nst_loss(s, t, 'gaussian'),
    'fsp': lambda s, t: F.fsp_loss((s, s.roll(1, 1)), (t, t.roll(1, 1))),
    'kd': lambda s, t: F.kd_loss(s.flatten(1), t.flatten(1)),
    'bss': lambda s, t: F.bss_loss(s.flatten(1), t.flatten(1)),
    'nst-gan': lambda s, t: F.nst_gan_loss(s, t, lambda x: x.pow(3).sum(-1, keepdim=True)),
}
losses = pytest.mark.parametrize('loss', MAPS.values(), ids=MAPS)


@pytest.fixture
def student():
    return torch.randn(8, 6, 5, 5)


@pytest.fixture
def teacher():
    return torch.randn(8, 6, 5, 5)


@losses
def test_autocast_changes_nothing(loss, student, teacher):
    expected = loss(student, teacher)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@losses
def test_half_inputs_are_computed_in_float32(loss, student, teacher, dtype):
    # All that is lost is what the inputs have lost: the loss of the rounded inputs is float32's, up to the order of
    # its sums, and the gradient is rounded on its way only.
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    value = loss(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    wide = student.detach().float().requires_grad_()
    expected = loss(wide, teacher.float())
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    assert student.grad.dtype == dtype
    assert (student.grad.float() - wide.grad).norm() <= 2 * torch.finfo(dtype).eps * wide.grad.norm()


@losses
def test_bf16_features_under_autocast_are_near(loss, student, teacher):
    # bf16 keeps 8 bits, 0.4 %, of each feature; these losses are squares of differences: a few per cent at the most.
    with torch.autocast('cpu', dtype=torch.bfloat16):
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


@losses
def test_nan_is_not_hidden(loss, student, teacher):
    student[3, 2, 1, 1] = torch.nan
    assert loss(student, teacher).isnan()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('name', ['sp', 'fsp'])
def test_the_precision_of_other_products_is_left_alone(name, dtype, student, teacher):
    places = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [place.fp32_precision for place in places]
    student = student.to(dtype).requires_grad_()
    MAPS[name](student, teacher.to(dtype)).backward()
    assert [place.fp32_precision for place in places] == before
    with pytest.raises(ValueError, match='batch'):
        MAPS[name](student, teacher[:2].to(dtype))
    assert [place.fp32_precision for place in places] == before
