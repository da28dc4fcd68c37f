from math import log, sqrt

import pytest
import torch

from kd_plugins.functional import pkt_loss


def distributions(features):
    rows = []
    for x in features.flatten(1).tolist():
        cosines = [
            sum(a * b for a, b in zip(x, y, strict=True)) / sqrt(sum(a * a for a in x)) / sqrt(sum(b * b for b in y))
            for y in features.flatten(1).tolist()
        ]
        rows.append([(c + 1) / sum(c + 1 for c in cosines) + 1e-7 for c in cosines])
    return rows


def by_loops(student, teacher):
    """Return the Kullback-Leibler divergence of all rows, over all entries."""
    s, t = distributions(student), distributions(teacher)
    size = range(len(s))
    return sum(t[i][j] * log(t[i][j] / s[i][j]) for i in size for j in size) / len(s) ** 2


def features(*shape, **options):
    return torch.randn(shape, dtype=torch.float64, **options)


def test_value_and_gradient():
    student, teacher = features(5, 2, 3, 2, requires_grad=True), features(5, 7)
    assert pkt_loss(student, teacher).item() == pytest.approx(by_loops(student, teacher), rel=1e-10)
    assert torch.autograd.gradcheck(lambda s: pkt_loss(s, teacher), (student,))


def test_invariances():
    student, teacher = features(5, 6), features(5, 8)
    rotation = torch.linalg.qr(features(6, 6))[0]
    expected = pkt_loss(student, teacher)
    torch.testing.assert_close(pkt_loss(3 * student, 1e4 * teacher), expected)
    torch.testing.assert_close(pkt_loss(torch.rand(5, 1) * student @ rotation, teacher), expected)
    order = torch.tensor([2, 0, 4, 1, 3])
    torch.testing.assert_close(pkt_loss(student[order], teacher[order]), expected)
    assert pkt_loss(student - 3, teacher).item() != pytest.approx(expected.item(), rel=0.01)


def test_equal_zero_and_single():
    equal, zeros = features(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    same, dead = pkt_loss(equal, equal), pkt_loss(zeros, torch.eye(3))
    (same + dead).backward()
    assert same.item() == 0
    assert equal.grad.abs().max() < 1e-12
    # Rows of thirds, and of 1/2 and two quarters.
    assert dead.item() == pytest.approx((0.5 * log(1.5) + 0.5 * log(0.75)) / 3, rel=1e-5)
    assert not zeros.grad.any()
    assert pkt_loss(torch.randn(1, 4), torch.randn(1, 2)).item() == 0


def test_opposite_samples_have_a_finite_divergence():
    student = torch.tensor([[1.0, 3.0], [-1.0, -3.0]], requires_grad=True)
    loss = pkt_loss(student, torch.tensor([[1.0], [1.0]]))
    loss.backward()
    assert loss.item() == pytest.approx((log(0.5) + log(0.5 / 1e-7)) / 4, rel=0.05)
    assert student.grad.isfinite().all()


def test_networks_that_nearly_agree_keep_their_digits():
    teacher = features(64, 32)
    student = teacher + 1e-3 * features(64, 32)
    exact = pkt_loss(student, teacher)
    assert pkt_loss(student.float(), teacher.float()).item() == pytest.approx(exact.item(), rel=1e-3)


def test_nearly_equal_samples_of_bfloat16_keep_their_digits():
    student, teacher = (torch.randn(1, 64, 14, 14) + 0.05 * torch.randn(16, 64, 14, 14) for _ in range(2))
    student, teacher = student.bfloat16().requires_grad_(), teacher.bfloat16()
    value = pkt_loss(student, teacher)
    value.backward()
    exact = student.detach().double().requires_grad_()
    expected = pkt_loss(exact, teacher.double())
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=0.01, atol=0)
    assert (student.grad - exact.grad).norm() <= 0.02 * exact.grad.norm()


def test_wrong_use():
    with pytest.raises(ValueError, match=r'pkt_loss: .*same B, got student \(3, 4\) and teacher \(2, 4\); give both'):
        pkt_loss(torch.ones(3, 4), torch.ones(2, 4))
