import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import draw_mask, fitnet_loss, mgd_loss


def by_loops(student, teacher):
    """Sum the squares of one image at a time."""
    images = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    return sum(sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) for s, t in images) / len(student)


def test_value_and_gradient():
    student = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    assert mgd_loss(student, teacher).item() == pytest.approx(by_loops(student, teacher))
    torch.testing.assert_close(mgd_loss(student, teacher), 2 * fitnet_loss(student, teacher, 'sum'))
    assert torch.autograd.gradcheck(lambda s: mgd_loss(s, teacher), (student,))


def test_limits():
    student = torch.randn(2, 3, 4, 4)
    assert mgd_loss(student, student) == 0
    torch.testing.assert_close(mgd_loss(student + 1e4, student), torch.tensor(1e8 * 48), rtol=1e-5, atol=0)
    # Batches of equal images have the loss of one; twice the positions twice the loss.
    for repeats, factor in (((3, 1, 1, 1), 1), ((1, 1, 2, 1), 2)):
        more = student.repeat(repeats)
        torch.testing.assert_close(mgd_loss(more, -more), factor * mgd_loss(student, -student))


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6)
    expected = mgd_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(mgd_loss(student, teacher), expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('mask', 'shape'), [('positions', (40, 1, 30, 20)), ('channels', (40, 50, 1, 1))])
def test_a_mask_has_its_share_of_zeros(mask, shape, dtype, device):
    maps = torch.ones(40, 50, 30, 20, dtype=dtype)
    drawn = draw_mask(maps, 0.65, mask)
    assert drawn.shape == shape
    assert drawn.dtype == dtype
    assert drawn.device == maps.device
    assert set(drawn.unique().tolist()) == {0, 1}
    assert 1 - drawn.float().mean().item() == pytest.approx(0.65, abs=0.03)
    assert (drawn[0] != drawn[1]).any()
    assert draw_mask(maps, 0, mask).all()


def test_masks_repeat_with_the_seed():
    maps = torch.ones(2, 3, 8, 8)
    torch.manual_seed(3)
    drawn = [draw_mask(maps, 0.5) for _ in range(2)]
    torch.manual_seed(3)
    assert torch.equal(draw_mask(maps, 0.5), drawn[0])
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ('student', 'teacher', 'say'),
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), "add adapter='auto' to the term"),
        ((2, 3), (2, 3), 'expected feature maps (B, C, H, W)'),
        ((2, 3, 4, 4), (1, 3, 4, 4), 'same images'),
    ],
)
def test_mismatch(student, teacher, say):
    with pytest.raises(ValueError) as error:
        mgd_loss(torch.ones(student), torch.ones(teacher))
    assert say in str(error.value)
