import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import at, at_loss, attention_map, matched_attention


def by_loops(student, teacher, convention, p):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        maps = []
        for sample in (s, t):
            c, h, w = sample.shape
            q = [sum(abs(sample[k, i, j].item()) ** p for k in range(c)) for i in range(h) for j in range(w)]
            norm = sum(x * x for x in q) ** 0.5
            maps.append([x / norm for x in q])
        square = sum((a - b) ** 2 for a, b in zip(*maps, strict=True))
        total += square**0.5 if convention == 'paper' else square / len(maps[0])
    return total / len(student)


@pytest.mark.parametrize('p', [1, 2, 3.5])
@pytest.mark.parametrize('convention', ['paper', 'code'])
def test_value_and_gradient(convention, p):
    student = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 2, 4, dtype=torch.float64)
    loss = at_loss(student, teacher, convention, p)
    assert loss.item() == pytest.approx(by_loops(student, teacher, convention, p), rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: at_loss(s, teacher, convention, p), (student,))


@pytest.mark.parametrize(('convention', 'scale'), [('code', 300), ('paper', 1e-3)])
def test_float16_rounds_the_gradient_once(convention, scale):
    """A factor of it alone would be below float16's smallest number, or above its largest."""
    student, teacher = (scale * torch.randn(2, 8, 64, 8, 8)).half().unbind()
    found = []
    for dtype in (torch.float32, torch.float16):
        leaf = student.detach().to(dtype).requires_grad_()
        found += torch.autograd.grad(1000 * at_loss(leaf, teacher.to(dtype), convention), leaf)
    assert found[1].dtype == torch.float16
    torch.testing.assert_close(found[1], found[0].half(), rtol=2e-3, atol=6e-8)
    assert found[1].count_nonzero() > 0.9 * student.numel()


@pytest.mark.parametrize('p', [1, 2, 3.5])
def test_attention_map(p):
    features = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    expected = [[[sum(abs(x) ** p for x in s[:, i, j].tolist()) for j in range(4)] for i in range(2)] for s in features]
    torch.testing.assert_close(attention_map(features, p), torch.tensor(expected, dtype=features.dtype))


def test_matched_attention_is_what_the_loss_compares():
    student, teacher = torch.randn(2, 3, 8, 4, dtype=torch.float64), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    first, second = matched_attention(student, teacher, 1)
    assert first.shape == second.shape == (2, 16)
    torch.testing.assert_close((first - second).norm(dim=1).mean(), at_loss(student, teacher, p=1))


def test_defaults():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(at_loss(student, teacher), at_loss(student, teacher, 'paper', 2))


def test_conventions_of_one_sample():
    # beta_paper / 2 * norm against beta_code * norm^2 / (H W)
    student, teacher = torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(at_loss(student, teacher, 'code'), at_loss(student, teacher, 'paper') ** 2 / 20)


def test_scale_of_a_network_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(at_loss(7 * student, -0.1 * teacher), at_loss(student, teacher))


def test_attention_is_pooled_not_the_features():
    student, teacher = torch.randn(2, 3, 8, 4, dtype=torch.float64), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    pooled = [adaptive_avg_pool2d(x.square().sum(1, keepdim=True), (4, 4)).sqrt() for x in (student, teacher)]
    torch.testing.assert_close(at_loss(student, teacher), at_loss(*pooled))


@pytest.mark.parametrize('convention', ['paper', 'code'])
@pytest.mark.parametrize('p', [1, 2, 3])
def test_equal_and_zero_features(convention, p):
    equal = torch.randn(1, 2, 3, 3, requires_grad=True)
    zeros = torch.zeros(2, 2, 3, 3, requires_grad=True)
    same = at_loss(equal, equal, convention, p)
    dead = at_loss(zeros, torch.ones(2, 1, 3, 3), convention, p)
    (same + dead).backward()
    assert same.item() == 0
    assert dead.item() == pytest.approx(1 if convention == 'paper' else 1 / 9)
    assert not equal.grad.any()
    assert not zeros.grad.any()


def test_wrong_use():
    with pytest.raises(ValueError, match=r'at_loss: expected feature maps \(B, C, H, W\), got student \(2, 3\)'):
        at_loss(torch.ones(2, 3), torch.ones(2, 3, 1, 1))
    with pytest.raises(ValueError, match="convention: expected one of 'paper', 'code', got 'sum'"):
        at_loss(torch.ones(2, 3, 1, 1), torch.ones(2, 3, 1, 1), 'sum')


def test_some_images_at_a_time_agree(monkeypatch):
    student, teacher = torch.randn(7, 3, 4, 4, requires_grad=True), torch.randn(7, 5, 4, 4)
    whole = at_loss(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(at, '_PART', 2 * 3 * 16)
    parts = at_loss(student, teacher)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, student)[0], gradient)
