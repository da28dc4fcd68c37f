import pytest
import torch

from kd_plugins.functional import similarity_matrix, sp_loss
from kd_plugins.functional.gram import gram


def similarities_by_loops(features):
    rows = []
    for x in features.flatten(1).tolist():
        row = [sum(a * b for a, b in zip(x, y, strict=True)) for y in features.flatten(1).tolist()]
        norm = sum(a * a for a in row) ** 0.5
        rows.append([a / norm for a in row])
    return rows


def by_loops(student, teacher):
    grams = [similarities_by_loops(x) for x in (student, teacher)]
    size = range(len(student))
    return sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in size for j in size) / len(student) ** 2


def features(*shape, **options):
    return torch.randn(shape, dtype=torch.float64, **options)


def test_value_and_gradient():
    student, teacher = features(4, 2, 3, 2, requires_grad=True), features(4, 7)
    assert sp_loss(student, teacher).item() == pytest.approx(by_loops(student, teacher), rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: sp_loss(s, teacher), (student,))


def test_similarity_matrix():
    x = features(4, 2, 3, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        expected = torch.tensor(similarities_by_loops(x), dtype=x.dtype)
        torch.testing.assert_close(similarity_matrix(x.contiguous(memory_format=layout)), expected)


def test_rows_have_euclidean_length_one():
    # Orthogonal student: unit matrix. Teacher with all samples alike: rows of 1/sqrt(B), which an L1 norm would miss.
    student, teacher = torch.eye(4, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    assert sp_loss(student, teacher).item() == pytest.approx((4 * (1 - 0.5) ** 2 + 12 * 0.5**2) / 16)


def test_invariances():
    student, teacher = features(5, 6), features(5, 8)
    rotation = torch.linalg.qr(features(6, 6))[0]
    expected = sp_loss(student, teacher)
    torch.testing.assert_close(sp_loss(3 * student, 0.2 * teacher), expected)
    torch.testing.assert_close(sp_loss(student @ rotation, teacher), expected)
    order = torch.tensor([2, 0, 4, 1, 3])
    torch.testing.assert_close(sp_loss(student[order], teacher[order]), expected)


def test_equal_zero_and_single():
    equal, zeros, one = features(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True), torch.randn(1, 4)
    half = features(3, 4)
    half[1] = 0
    half.requires_grad_()
    same, dead, partly = sp_loss(equal, equal), sp_loss(zeros, torch.eye(3)), sp_loss(half, features(3, 4))
    (same + dead + partly).backward()
    assert same.item() == 0
    assert equal.grad.abs().max() < 1e-12
    assert dead.item() == pytest.approx(3 / 9)
    assert not zeros.grad.any()
    assert half.grad.isfinite().all()
    assert sp_loss(one, torch.randn(1, 2)).item() == pytest.approx(0, abs=1e-12)


def test_wrong_use():
    with pytest.raises(ValueError, match=r'sp_loss: .*same B, got student \(3, 4\) and teacher \(2, 4\); give both'):
        sp_loss(torch.ones(3, 4), torch.ones(2, 4))
    for shape in ((3,), (0, 4), (3, 0)):
        with pytest.raises(ValueError, match='two non-empty batches'):
            sp_loss(torch.ones(shape), torch.ones(shape))


def test_gram_differentiates_as_a_product_does():
    for shape in ((4, 3), (2, 3, 5)):
        x = features(*shape, requires_grad=True)
        assert torch.equal(gram(x), x @ x.mT)
        weight = features(*gram(x).shape)  # not symmetric
        expected = torch.autograd.grad((x @ x.mT * weight).sum(), x)
        torch.testing.assert_close(torch.autograd.grad((gram(x) * weight).sum(), x), expected)
        assert torch.autograd.gradgradcheck(gram, x)


def test_the_layout_in_memory_changes_nothing():
    student, teacher = features(4, 3, 5, 2), features(4, 6, 2, 2)
    own = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in (student, teacher)]
    plain = [x.clone().requires_grad_() for x in (student, teacher)]
    losses = [sp_loss(*pair) for pair in (own, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    grads = [torch.autograd.grad(loss, pair[0])[0] for loss, pair in zip(losses, (own, plain), strict=True)]
    torch.testing.assert_close(*grads)


def test_long_features_are_summed_as_exactly():
    # Two images whose features are so many that float32 sums of their products differ by more than the loss allows.
    student, teacher = torch.randn(2, 3_000_000).relu(), (torch.randn(2, 3_000_000) + 0.5).relu()
    wide = student.double().requires_grad_()
    student.requires_grad_()
    value, exact = sp_loss(student, teacher), sp_loss(wide, teacher.double())
    (value + exact).backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (student.grad - wide.grad).norm() < 1e-5 * wide.grad.norm()
