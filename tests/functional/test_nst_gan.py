from math import exp, log, sqrt

import pytest
import torch
from torch import nn

from kd_plugins.functional import nst_gan_loss, nst_loss
from kd_plugins.losses.nst_gan import Critic, NSTGANLoss


def by_loops(student, teacher, weight, bias):
    """The loss under a critic ``weight x + bias``, for maps of one size."""
    total = 0.0
    for maps, sign in ((teacher, -1), (student, 1)):
        values = []
        for channel in maps.flatten(2).flatten(0, 1).tolist():
            norm = sqrt(sum(v * v for v in channel))
            logit = bias + sum(w * v / norm * sqrt(len(channel)) for w, v in zip(weight, channel, strict=True))
            values.append(log(1 + exp(sign * logit)))
        total += sum(values) / len(values)
    return total


def linear(size):
    return nn.Linear(size, 1).double()


def test_value():
    student, teacher = torch.randn(3, 4, 2, 3, dtype=torch.float64), torch.randn(3, 6, 2, 3, dtype=torch.float64)
    critic = linear(6)
    expected = by_loops(student, teacher, critic.weight[0].tolist(), critic.bias.item())
    assert nst_gan_loss(student, teacher, critic).item() == pytest.approx(expected, rel=1e-12)


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 6, 4, dtype=torch.float64), torch.randn(2, 5, 3, 8, dtype=torch.float64)
    critic = linear(12)
    pooled = nn.functional.avg_pool2d(student, (2, 1)), nn.functional.avg_pool2d(teacher, (1, 2))
    torch.testing.assert_close(nst_gan_loss(student, teacher, critic), nst_gan_loss(*pooled, critic))


def test_a_critic_that_guesses_loses_2_log_2():
    maps = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    assert nst_gan_loss(*maps, lambda x: x.sum(-1, keepdim=True) * 0).item() == pytest.approx(2 * log(2))


def test_student_gets_the_reverse_of_the_gradient_and_the_critic_the_gradient():
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher, critic = torch.randn(2, 4, 2, 2, dtype=torch.float64), linear(4)

    def value(maps, weight):
        return nst_gan_loss(maps, teacher, lambda x: x @ weight.mT + critic.bias)

    weight = critic.weight.detach().requires_grad_()
    own, theirs = torch.autograd.grad(value(student, weight), (student, weight))
    step = 1e-6
    for tensor, gradient, sign in ((student, own, -1), (weight, theirs, 1)):
        for i in range(tensor.numel()):
            bump = torch.zeros_like(tensor).flatten()
            bump[i] = step
            bump = bump.view_as(tensor)
            with torch.no_grad():
                ends = [value(*(x + s * bump if x is tensor else x for x in (student, weight))) for s in (1, -1)]
            slope = ((ends[0] - ends[1]) / (2 * step)).item()
            assert gradient.flatten()[i].item() == pytest.approx(sign * slope, rel=1e-5, abs=1e-9)


def test_scale_of_a_channel_does_not_matter_and_a_dead_one_gets_no_gradient():
    student = torch.randn(2, 3, 2, 2).double()
    student[:, 1] = 0
    teacher, critic = torch.randn(2, 3, 2, 2).double(), linear(4)
    torch.testing.assert_close(nst_gan_loss(7 * student, teacher, critic), nst_gan_loss(student, teacher, critic))
    student.requires_grad_()
    nst_gan_loss(student, teacher, critic).backward()
    assert student.grad[:, 1].abs().max() == 0
    assert student.grad[:, 0].abs().min() > 0


@pytest.mark.parametrize(('student', 'teacher'), [((2, 3), (2, 3)), ((2, 3, 4, 4), (3, 3, 4, 4))])
def test_mismatch(student, teacher):
    with pytest.raises(ValueError, match='nst_gan_loss: expected') as error:
        nst_gan_loss(torch.ones(student), torch.ones(teacher), linear(16))
    assert '\n' not in str(error.value)


def learnt(reverse):
    """Train student maps and critic together; return how far the patterns are, before and after, and the values.

    The teacher's patterns are blobs at a few positions, the student starts with noise.
    """
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing='ij')
    centres = torch.randint(0, 3, (8, 12, 2)).float()
    teacher = torch.exp(-((rows - centres[..., :1, None]) ** 2 + (columns - centres[..., 1:, None]) ** 2))
    student, loss = nn.Parameter(torch.rand(8, 12, 5, 5)), NSTGANLoss(hidden=32)
    loss(student, teacher)
    optimizer = torch.optim.SGD([student, *loss.parameters()], lr=0.1, momentum=0.9)
    distances, values = [nst_loss(student, teacher, 'gaussian').item()], []
    for _ in range(600):
        value = loss(student, teacher)
        optimizer.zero_grad()
        value.backward()
        student.grad *= 20 if reverse else -20  # its gradient is a mean over 1,200 entries
        optimizer.step()
        values.append(value.item())
    return [*distances, nst_loss(student, teacher, 'gaussian').item()], values


def test_one_optimiser_moves_the_students_patterns_to_the_teachers():
    (before, after), values = learnt(reverse=True)
    assert after < 0.5 * before
    assert min(values) < 1.3  # the critic has learnt to discriminate
    assert sum(values[-100:]) / 100 > 1.1  # and hardly can any more


def test_without_the_reversal_the_critic_wins():
    (before, after), values = learnt(reverse=False)
    assert after > 0.9 * before
    assert values[-1] < 0.5


def test_critic_is_bounded_by_how_far_patterns_are():
    critic = Critic(9, 16)
    with torch.no_grad():
        critic.hidden.weight *= 1000
    a, b = torch.randn(2, 500, 9)
    assert ((critic(a) - critic(b)).abs()[:, 0] <= (a - b).norm(dim=1)).all()
