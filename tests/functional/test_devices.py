"""Every loss on the device under test; and what can be seen of a GPU without one."""

from contextlib import nullcontext

import pytest
import torch
from loss_table import LOSSES, TOLERANCES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from kd_plugins import functional as F
from kd_plugins.functional import gram

losses = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)
layouts = pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['', 'channels_last'])
SHAPE = 12, 6, 5, 4


def value_and_gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    return value.detach(), student.grad


@pytest.mark.parametrize('dtype', TOLERANCES, ids=lambda x: str(x).removeprefix('torch.'))
@layouts
@losses
def test_value_and_gradient_are_those_of_float64_on_a_cpu(loss, layout, dtype, device):
    features = [torch.randn(SHAPE).relu().to(dtype).to(device, memory_format=layout) for _ in range(2)]
    value, gradient = value_and_gradient(loss, *features)
    with torch.device('cpu'):
        expected, slope = value_and_gradient(loss, *(x.cpu().double() for x in features))
    assert value.device == gradient.device == features[0].device
    assert gradient.dtype == dtype
    of_value, of_gradient = TOLERANCES[dtype]
    assert (value.cpu() - expected).abs() <= of_value * expected
    assert (gradient.cpu().double() - slope).norm() <= of_gradient * slope.norm()


def test_the_triplet_loss_is_that_of_float64_on_a_cpu(device):
    x, labels = torch.randn(24, 16, device=device), torch.arange(24, device=device) // 4
    for margin in (0.3, None):
        value, gradient = value_and_gradient(lambda x, y, m=margin: F.batch_hard_triplet_loss(x, y, m), x, labels)
        with torch.device('cpu'):
            expected, slope = value_and_gradient(
                lambda x, y, m=margin: F.batch_hard_triplet_loss(x, y, m), x.cpu().double(), labels.cpu()
            )
        torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient.cpu().double(), slope, rtol=1e-4, atol=1e-6)


def test_samples_and_attack_of_bss_are_those_of_a_cpu(device):
    student, teacher, inputs = torch.randn(40, 4), torch.randn(40, 4), torch.randn(40, 6)
    labels, weight = teacher.argmax(1), torch.randn(4, 6)

    def answers(place):
        s, t, y, x, w = (z.to(place) for z in (student, teacher, labels, inputs, weight))
        chosen = F.base_samples(s, t, y, 5)
        made = F.boundary_attack(x, (x @ w.T).argmax(1), (x @ w.T).argmin(1), lambda z, indices: z @ w.T)
        return chosen.sort().values.cpu(), made.cpu()

    chosen, made = answers(device)
    with torch.device('cpu'):
        expected = answers('cpu')
    assert torch.equal(chosen, expected[0])
    torch.testing.assert_close(made, expected[1], rtol=1e-4, atol=1e-5)
    targets = F.draw_targets(teacher, labels)
    assert targets.device == teacher.device
    assert (targets != labels).all()


@losses
def test_no_loss_mixes_devices_or_waits_for_a_gpu(loss):
    # Tensors without contents that say they are on a GPU: one of a CPU beside them is an error, and so is a question
    # about their contents, for which the CPU would have to wait.
    with torch.device('cpu'), FakeTensorMode():
        for dtype in (torch.float32, torch.float16):
            student, teacher = (torch.randn(SHAPE, device='cuda', dtype=dtype) for _ in range(2))
            assert loss(student.requires_grad_(), teacher).device == student.device


@losses
def test_no_gradient_mixes_devices_or_waits_for_a_gpu(loss, monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # knows no such device
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: False)
    with torch.device('meta'):
        for dtype in (torch.float32, torch.float16):
            student = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
            loss(student, torch.randn(SHAPE, dtype=dtype)).backward()
            assert student.grad.is_meta


@pytest.mark.parametrize(
    'loss',
    [F.at_loss, F.nst_loss, F.fitnet_loss, F.pkd_loss, F.cwd_loss, lambda s, t: F.fsp_loss((s, s), (s, t))],
    ids=['at', 'nst', 'fitnet', 'pkd', 'cwd', 'fsp'],
)
def test_maps_of_a_multiple_of_the_size_have_a_deterministic_gradient(loss, monkeypatch):
    student, teacher = torch.randn(2, 3, 8, 6, requires_grad=True), torch.randn(2, 3, 4, 3)
    expected = torch.autograd.grad(loss(student, teacher), student)[0]
    with monkeypatch.context() as patch:
        for name in ('adaptive_avg_pool2d', 'adaptive_max_pool2d'):  # which have none on a GPU
            patch.setattr(gram, name, None)
        assert torch.equal(torch.autograd.grad(loss(student, teacher), student)[0], expected)
    for name, adaptive in (('avg_pool2d', adaptive_avg_pool2d), ('max_pool2d', adaptive_max_pool2d)):
        monkeypatch.setattr(
            gram, name, lambda x, cell, pool=adaptive: pool(x, (x.shape[-2] // cell[0], x.shape[-1] // cell[1]))
        )
    torch.testing.assert_close(torch.autograd.grad(loss(student, teacher), student)[0], expected)
