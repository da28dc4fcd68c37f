from math import dist

import pytest
import torch

from kd_plugins.functional import rkd, rkd_angle_loss, rkd_distance_loss, rkd_loss

LOSSES = pytest.mark.parametrize('loss', [rkd_distance_loss, rkd_angle_loss])
CONVENTIONS = pytest.mark.parametrize('convention', ['paper', 'code'])


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def distance_by_loops(student, teacher, convention):
    n, relative = len(student), []
    for x in (student.tolist(), teacher.tolist()):
        d = [[dist(a, b) for b in x] for a in x]
        real = [d[i][j] for i in range(n) for j in range(n) if i != j]
        relative.append([y / (sum(real) / len(real)) for y in real])
    total = sum(huber(a - b) for a, b in zip(*relative, strict=True))
    return total / (n * (n - 1) if convention == 'paper' else n * n)


def cosine(x, a, j, k):
    u, v = ([p - q for p, q in zip(x[i], x[a], strict=True)] for i in (j, k))
    return sum(p * q for p, q in zip(u, v, strict=True)) / (dist(x[j], x[a]) * dist(x[k], x[a]))


def angle_by_loops(student, teacher, convention):
    n, s, t = len(student), student.tolist(), teacher.tolist()
    triplets = [(a, j, k) for a in range(n) for j in range(n) for k in range(n) if len({a, j, k}) == 3]
    total = sum(huber(cosine(s, *x) - cosine(t, *x)) for x in triplets)
    return total / (len(triplets) if convention == 'paper' else n**3)


def embeddings(*shape, **options):
    return torch.randn(shape, dtype=torch.float64, **options)


@CONVENTIONS
def test_value(convention):
    # Two dimensions: relative distances and cosines differ by more than 1, the linear part of the Huber loss too.
    student, teacher = embeddings(6, 2), embeddings(6, 3)
    student[0] *= 20
    distance = distance_by_loops(student, teacher, convention)
    angle = angle_by_loops(student, teacher, convention)
    assert rkd_distance_loss(student, teacher, convention).item() == pytest.approx(distance, rel=1e-10)
    assert rkd_angle_loss(student, teacher, convention).item() == pytest.approx(angle, rel=1e-10)
    both = rkd_loss(student, teacher, 2.0, 3.0, convention)
    assert both.item() == pytest.approx(2 * distance + 3 * angle, rel=1e-10)


def test_defaults():
    student, teacher = embeddings(5, 2, 3), embeddings(5, 4)
    expected = 25 * rkd_distance_loss(student, teacher, 'paper') + 50 * rkd_angle_loss(student, teacher, 'paper')
    torch.testing.assert_close(rkd_loss(student, teacher), expected)


@LOSSES
def test_normalize(loss):
    student, teacher = embeddings(5, 3), embeddings(5, 4)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (student, teacher)]
    torch.testing.assert_close(loss(student, teacher, normalize=True), loss(*unit))
    torch.testing.assert_close(rkd_loss(student, teacher, normalize=True), rkd_loss(*unit))


def test_conventions_differ_by_a_constant():
    student, teacher, n = embeddings(7, 3), embeddings(7, 3), 7
    code, paper = (rkd_distance_loss(student, teacher, x) for x in ('code', 'paper'))
    torch.testing.assert_close(code, paper * (n - 1) / n)
    code, paper = (rkd_angle_loss(student, teacher, x) for x in ('code', 'paper'))
    torch.testing.assert_close(code, paper * (n - 1) * (n - 2) / n**2)


@CONVENTIONS
@LOSSES
def test_gradcheck(loss, convention):
    student, teacher = embeddings(5, 2, requires_grad=True), embeddings(5, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, convention), (student,))
    with torch.no_grad():
        student[0] *= 20
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, convention), (student,))
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, convention, True), (student,))


@LOSSES
def test_invariances(loss):
    student, teacher = embeddings(6, 4), embeddings(6, 5)
    expected = loss(student, teacher)
    assert expected > 1e-3
    torch.testing.assert_close(loss(9 * student + 30, teacher), expected)
    torch.testing.assert_close(loss(student, 0.01 * teacher - 5), expected)
    torch.testing.assert_close(loss(student @ torch.linalg.qr(embeddings(4, 4))[0], teacher), expected)
    assert loss(student, 3 * student + 1).item() == pytest.approx(0, abs=1e-14)


def test_blocks_of_anchors_agree(monkeypatch):
    student, teacher = embeddings(11, 4, requires_grad=True), embeddings(11, 4)
    whole = rkd_angle_loss(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(rkd, '_BLOCK_ELEMENTS', 3 * 11**2)
    torch.testing.assert_close(rkd_angle_loss(student, teacher), whole)
    torch.testing.assert_close(torch.autograd.grad(rkd_angle_loss(student, teacher), student)[0], gradient)


@LOSSES
def test_float32_is_as_good(loss):
    student, teacher = torch.randn(64, 128, requires_grad=True), torch.randn(64, 256)
    exact = student.detach().double().requires_grad_()
    value, reference = loss(student, teacher), loss(exact, teacher.double())
    (value + reference).backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference.item(), rel=1e-5)
    assert (student.grad - exact.grad).norm() < 1e-5 * exact.grad.norm()


@LOSSES
def test_far_from_the_origin(loss):
    # Multiples of 1/256, so that float32 holds the moved embeddings exactly.
    student, teacher = (torch.randn(32, 64) * 256).round() / 256, torch.randn(32, 64)
    assert loss(student + 1000, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-3)


@LOSSES
def test_nearer_than_rounding_is_one_point(loss):
    student, teacher = torch.randn(6, 8).repeat(3, 1), torch.randn(18, 8)
    near = student + 1e-6 * torch.randn(18, 8)
    assert loss(near, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)


@LOSSES
def test_what_the_embeddings_rounding_leaves_is_one_point(loss):
    # Around 1, float32 holds multiples of 6e-8 or 1.2e-7: these differ in their last digit alone.
    student = (1 + 1e-7 * torch.randn(8, 16)).requires_grad_()
    assert student.unique().numel() > 1
    loss(student, torch.randn(8, 16)).backward()
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize('spread', [1e-9, 1e-12, 1e-14, 1e-20])
@LOSSES
def test_a_tiny_spread_has_a_finite_gradient(loss, spread):
    student = (spread * torch.randn(8, 16)).requires_grad_()
    loss(student, torch.randn(8, 16)).backward()
    assert student.grad.isfinite().all()


def test_weight_zero_skips_the_part():
    student, teacher = embeddings(4, 3), embeddings(4, 3)
    assert torch.equal(rkd_loss(student, teacher, 2.0, 0.0), 2 * rkd_distance_loss(student, teacher))
    assert torch.equal(rkd_loss(student, teacher, 0.0, 2.0), 2 * rkd_angle_loss(student, teacher))
    # NaN times 0 would be NaN: the part has really not been computed.
    assert rkd_loss(student, torch.full_like(teacher, torch.nan), 0.0, 0.0).item() == 0


@CONVENTIONS
@pytest.mark.parametrize('size', [1, 2])
def test_small_batches(size, convention):
    student, teacher = embeddings(size, 3, requires_grad=True), embeddings(size, 3)
    loss = rkd_loss(student, teacher, convention=convention)
    loss.backward()
    # A single pair is its own mean.
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@LOSSES
def test_equal_and_coinciding_samples(loss, dtype):
    student = torch.randn(5, 3, dtype=dtype)
    student[3] = student[1]
    student.requires_grad_()
    collapsed = torch.ones(5, 3, dtype=dtype, requires_grad=True)
    teacher = torch.randn(5, 3, dtype=dtype)
    same, near, flat = loss(student, student), loss(student, teacher), loss(collapsed, teacher)
    (same + near + flat).backward()
    assert same.item() == 0
    assert near.isfinite()
    assert near > 0
    assert flat > 0
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100
    assert not collapsed.grad.any()


def test_coinciding_samples_form_no_triplet():
    # Of the teacher's points, 0 and 1 are one: its cosines at and to them are 0 or those of the other legs.
    student, teacher = embeddings(4, 3), embeddings(4, 3)
    teacher[1] = teacher[0]
    t, total = teacher.tolist(), 0.0
    triplets = [(a, j, k) for a in range(4) for j in range(4) for k in range(4) if len({a, j, k}) == 3]
    for a, j, k in triplets:
        merged = {a, j} == {0, 1} or {a, k} == {0, 1}
        total += huber(cosine(student.tolist(), a, j, k) - (0.0 if merged else cosine(t, a, j, k)))
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(total / len(triplets), rel=1e-10)


def test_memory_stays_quadratic():
    # Nothing of the size B^3 is kept for the backward pass.
    student, teacher = torch.randn(96, 8, requires_grad=True), torch.randn(96, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        rkd_loss(student, teacher)
    assert max(kept) <= 96**2


def test_wrong_use():
    with pytest.raises(ValueError, match=r'rkd_loss: .*same B, got student \(3, 4\) and teacher \(2, 4\)'):
        rkd_loss(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="convention: expected one of 'paper', 'code', got 'official'"):
        rkd_distance_loss(torch.ones(3, 4), torch.ones(3, 4), 'official')
