import pytest
import torch
from torch.nn.functional import adaptive_max_pool2d

from kd_plugins.functional import fsp_loss


def by_loops(student, teacher):
    total = 0.0
    (size, c_1), c_2 = student[0].shape[:2], student[1].shape[1]
    for b in range(size):
        for i in range(c_1):
            for j in range(c_2):
                flows = []
                for first, second in (student, teacher):
                    h, w = first.shape[2:]
                    products = [(first[b, i, y, x] * second[b, j, y, x]).item() for y in range(h) for x in range(w)]
                    flows.append(sum(products) / (h * w))
                total += (flows[0] - flows[1]) ** 2
    return total / size


def pair(size=2, spatial=(3, 2), **options):
    return tuple(torch.randn(size, c, *spatial, dtype=torch.float64, **options) for c in (2, 4))


def test_value_and_gradient():
    student, teacher = pair(requires_grad=True), pair(spatial=(4, 4))
    assert fsp_loss(student, teacher).item() == pytest.approx(by_loops(student, teacher), rel=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: fsp_loss((a, b), teacher), student)


def test_larger_map_is_max_pooled():
    first, second, teacher = torch.randn(2, 2, 8, 6), torch.randn(2, 4, 4, 3), pair()
    torch.testing.assert_close(
        fsp_loss((first, second), teacher), fsp_loss((adaptive_max_pool2d(first, (4, 3)), second), teacher)
    )


def test_a_list_is_a_pair():
    student, teacher = pair(), pair()
    assert torch.equal(fsp_loss(list(student), list(teacher)), fsp_loss(student, teacher))


def test_weight_scales_the_gradient():
    student, teacher = pair(requires_grad=True), pair()
    once = torch.autograd.grad(fsp_loss(student, teacher), student)
    often = torch.autograd.grad(50 * fsp_loss(student, teacher), student)
    for a, b in zip(once, often, strict=True):
        assert a.any()
        torch.testing.assert_close(b, 50 * a)


def test_equal_and_zero():
    student = pair(size=1, requires_grad=True)
    zeros = [torch.zeros_like(x, requires_grad=True) for x in student]
    same, dead = fsp_loss(student, student), fsp_loss(zeros, student)
    gradients = torch.autograd.grad(same + dead, (*student, *zeros))
    assert same.item() == 0
    assert dead.item() > 0
    assert not any(g.any() for g in gradients)


def test_wrong_use():
    a, b, c = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4), torch.ones(2, 7, 4, 4)
    with pytest.raises(
        ValueError, match=r"same number of channels, got student \(2, 5, 4, 4\) and teacher \(2, 7.*'auto'"
    ):
        fsp_loss((a, b), (a, c))
    with pytest.raises(ValueError, match=r'a pair of maps as student, got a tensor \(2, 3, 4, 4\)'):
        fsp_loss(a, (a, b))
    with pytest.raises(ValueError, match='a pair of maps as teacher, got 3 maps'):
        fsp_loss((a, b), (a, b, c))
    with pytest.raises(ValueError, match='same images'):
        fsp_loss((a, b), (a[:1], b[:1]))
