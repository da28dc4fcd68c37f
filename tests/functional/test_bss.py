from itertools import pairwise
from math import exp, log, sqrt

import pytest
import torch

from kd_plugins.functional import base_samples, boundary_attack, bss_loss, draw_targets


def softmax(z):
    size = sum(exp(x) for x in z)
    return [exp(x) / size for x in z]


def loss_by_loops(student, teacher, tau):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax([x / tau for x in t]), softmax([x / tau for x in s])
        total += sum(a * (log(a) - log(b)) for a, b in zip(p, q, strict=True))
    return total / len(student)


def samples_by_loops(student, teacher, labels, size):
    found = []
    for i, (s, t, y) in enumerate(zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)):
        if s.index(max(s)) == y == t.index(max(t)):
            p, q = softmax(t), softmax(s)
            found.append((sum((p[k] - q[k]) ** 2 for k in range(len(p)) if k != y), i))
    return {i for _, i in sorted(found, reverse=True)[:size]}


class Bowls:
    """A teacher whose logits are ``w_k x + a_k |x|^2 / 2``, so that their gradients can be written down."""

    def __init__(self, classes, size):
        self.slopes = torch.randn(classes, size, dtype=torch.float64) / 2
        self.curves = torch.randn(classes, dtype=torch.float64) / 4

    def __call__(self, x, indices=None):
        x = x.flatten(1)
        return x @ self.slopes.to(x).T + self.curves.to(x) * x.square().sum(1, keepdim=True) / 2

    def attack(self, x, y, k, steps, step_size, clamp):
        """Lead one sample along by plain loops; also return how many steps it went."""
        slopes, curves, gone = self.slopes.tolist(), self.curves.tolist(), 0
        for _ in range(steps):
            square = sum(v * v for v in x)
            z = [
                sum(w * v for w, v in zip(slope, x, strict=True)) + curve * square / 2
                for slope, curve in zip(slopes, curves, strict=True)
            ]
            if z.index(max(z)) == y:
                g = [slopes[k][d] - slopes[y][d] + (curves[k] - curves[y]) * x[d] for d in range(len(x))]
                norm = sqrt(sum(v * v for v in g))
                x = [v + step_size * (z[y] - z[k] + 1e-4) * d / norm for v, d in zip(x, g, strict=True)]
                gone += 1
            x = [max(-clamp, min(clamp, v)) for v in x]
        return x, gone


def test_attack_by_loops():
    teacher = Bowls(5, 12)
    inputs = torch.randn(40, 3, 2, 2, dtype=torch.float64)
    labels = teacher(inputs).argmax(1)
    labels[0] = (labels[0] + 1) % 5  # one that the teacher never took for its class
    targets = (labels + torch.randint(1, 5, (40,))) % 5
    made = boundary_attack(inputs, labels, targets, teacher, steps=6, step_size=0.3, clamp=2.0)
    found = [
        teacher.attack(*sample, 6, 0.3, 2.0)
        for sample in zip(inputs.flatten(1).tolist(), labels.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(made.flatten(1), torch.tensor([x for x, _ in found], dtype=torch.float64))
    gone = [steps for _, steps in found]
    assert gone[0] == 0
    assert {6} < set(gone)  # some stop, some go on to the end
    assert (made.abs() == 2).any()
    assert not made.requires_grad


def test_attack_in_another_normalisation():
    """An attack of inputs divided by other deviations ends at the same pixels."""
    teacher = Bowls(5, 12)
    inputs = torch.randn(40, 3, 2, 2, dtype=torch.float64)
    labels = teacher(inputs).argmax(1)
    targets = (labels + torch.randint(1, 5, (40,))) % 5
    made = boundary_attack(inputs, labels, targets, teacher, clamp=1.5)
    scale = [0.8, 0.5, 1.3]
    size = torch.tensor(scale, dtype=torch.float64)[:, None, None]
    many = boundary_attack(size * inputs, labels, targets, lambda x, indices: teacher(x / size), clamp=1.5, scale=scale)
    torch.testing.assert_close(many, size * made)
    one = boundary_attack(2 * inputs, labels, targets, lambda x, indices: teacher(x / 2), clamp=1.5, scale=2)
    torch.testing.assert_close(one, 2 * made)
    assert (made.abs() == 1.5).any()


def test_only_samples_that_go_on_are_asked_for():
    teacher, asked = Bowls(5, 12), []
    inputs = torch.randn(40, 12, dtype=torch.float64)
    labels = teacher(inputs).argmax(1)
    labels[:3] = (labels[:3] + 1) % 5
    targets = (labels + torch.randint(1, 5, (40,))) % 5

    def ask(x, indices):
        asked.append(indices.tolist())
        assert len(x) == len(indices)
        if len(asked) == 1:
            assert torch.equal(x, inputs)
        return teacher(x)

    boundary_attack(inputs, labels, targets, ask, steps=6)
    assert asked[0] == list(range(40))
    assert set(asked[0]) - set(asked[1]) == {0, 1, 2}
    assert all(set(later) <= set(earlier) for earlier, later in pairwise(asked))
    assert len(asked[-1]) < len(asked[1])


def test_attack_ends_at_the_boundary():
    teacher = Bowls(4, 12)
    inputs = torch.randn(64, 12, dtype=torch.float64) / 2
    logits = teacher(inputs)
    labels, targets = logits.topk(2).indices.T
    made = boundary_attack(inputs, labels, targets, teacher, steps=50)

    def margins(x):
        z = teacher(x)
        return (z.gather(1, labels[:, None]) - z.gather(1, targets[:, None])).abs()

    assert margins(made).median() < 0.01 * margins(inputs).median()


def test_attack_needs_no_gradient_mode_and_ignores_autocast():
    linear = torch.nn.Linear(6, 3).requires_grad_(False)
    inputs = torch.randn(8, 6)
    labels = linear(inputs).argmax(1)
    teacher = lambda x, indices: linear(x)  # noqa: E731
    targets = (labels + 1) % 3
    made = boundary_attack(inputs, labels, targets, teacher)
    with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16):
        assert torch.equal(boundary_attack(inputs, labels, targets, teacher), made)
    assert linear.weight.grad is None
    assert not inputs.requires_grad


def test_no_gradient_is_no_step():
    inputs = torch.rand(2, 3)  # all within the clamp
    teacher = lambda x, indices: 0 * x + torch.tensor([2.0, 1.0, 0.0])  # noqa: E731
    assert torch.equal(boundary_attack(inputs, torch.zeros(2).long(), torch.ones(2).long(), teacher), inputs)


@pytest.mark.parametrize('size', [4, 1000])
def test_base_samples_by_loops(size):
    teacher = 2 * torch.randn(200, 6, dtype=torch.float64)
    student = teacher + torch.randn(200, 6, dtype=torch.float64)
    labels = teacher.argmax(1)
    labels[::5] = 3
    chosen = base_samples(student, teacher, labels, size)
    assert len(chosen) == min(size, len(chosen))
    assert set(chosen.tolist()) == samples_by_loops(student, teacher, labels, size)


def test_base_samples_that_are_none():
    logits = torch.eye(3)
    assert base_samples(logits, logits, torch.tensor([1, 2, 0])).tolist() == []
    assert base_samples(logits, -logits, torch.arange(3)).tolist() == []
    broken = logits.clone()
    broken[1, 0], broken[2, 2] = torch.nan, torch.inf
    assert base_samples(broken, logits, torch.arange(3)).tolist() == [0]


@pytest.mark.parametrize(('student', 'teacher'), [((4, 3), (4, 5)), ((4, 1), (4, 1)), ((4, 3, 2), (4, 3, 2))])
def test_base_samples_of_what_are_no_logits(student, teacher):
    with pytest.raises(ValueError, match='expected logits') as error:
        base_samples(torch.ones(student), torch.ones(teacher), torch.zeros(4).long())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('sure', [0.0, 1e4])
def test_targets_follow_the_teacher_over_the_wrong_classes(sure):
    count, logits = 40000, torch.tensor([sure, 1.0, 0.0, -1.0, 0.5])
    targets = draw_targets(logits.expand(count, -1), torch.zeros(count).long())
    expected = [0.0, *softmax(logits[1:].tolist())]
    for share, p in zip((torch.bincount(targets, minlength=5) / count).tolist(), expected, strict=True):
        assert abs(share - p) <= 4 * sqrt(p * (1 - p) / count)


def test_targets_follow_the_generator():
    logits, labels = torch.randn(50, 10), torch.randint(10, (50,))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(draw_targets(logits, labels))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_loss_by_loops(tau):
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert bss_loss(student, teacher, tau).item() == pytest.approx(loss_by_loops(student, teacher, tau), rel=1e-12)


def test_loss_is_the_authors_cross_entropy_but_for_a_constant():
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, dtype=torch.float64)
    p = (teacher / 3).softmax(1)
    theirs = -(p * (student / 3).log_softmax(1)).sum() / 5
    ours = bss_loss(student, teacher)
    torch.testing.assert_close(theirs - ours, -(p * p.log()).sum() / 5)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (theirs, ours)))


def test_gradcheck():
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: bss_loss(s, teacher), (student,))
