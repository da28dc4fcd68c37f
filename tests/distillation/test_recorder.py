import weakref
from functools import partial

import pytest
import torch
from torch import nn

from kd_plugins.distillation.recorder import Recorder
from kd_plugins.errors import UserError

pytestmark = pytest.mark.usefixtures('on_device')


class Net(nn.Module):
    """A shared head over two levels, and a BatchNorm that its ReLU overwrites."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)
        self.late = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        return {'out': (self.head(x), self.head(x[..., ::2])), 'late': [self.late(self.head(x))]}


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8)


def test_unknown_tap_offers_nearest(net):
    with pytest.raises(UserError, match="no module 'hed' to tap; nearest names: head"):
        Recorder(net, ['hed'])


@pytest.mark.parametrize('tap', ['', 'conv.'])
def test_the_root_and_malformed_names_are_refused(net, tap):
    with pytest.raises(UserError, match='nearest names'):
        Recorder(net, [tap])


def test_records_each_call_once_and_in_order(net, images):
    recorder = Recorder(net, ['head', 'conv', 'conv'])
    for _ in range(2):  # a second block starts with empty lists
        with recorder.recording() as features:
            output = net(images)
    assert [x.shape[-1] for x in features['head']] == [8, 4, 8]
    assert torch.equal(features['head'][1], output['out'][1])
    assert len(features['conv']) == 1


def test_whole_module_output_is_flattened_to_levels(images):
    net = nn.Sequential(Net(), nn.Identity())
    with Recorder(net, ['0']).recording() as features:
        output = net(images)
    expected = [*output['out'], *output['late']]
    assert all(torch.equal(a, b) for a, b in zip(features['0'], expected, strict=True))


def test_a_module_of_several_names_is_tapped_by_any(images):
    shared = nn.Conv2d(3, 4, 1)
    net = nn.Sequential(shared, nn.ReLU())
    net.first = nn.ModuleList([shared])
    with Recorder(net, ['0', 'first.0']).recording() as features:
        net[1](net[0](images))
    assert torch.equal(features['0'][0], features['first.0'][0])
    with pytest.raises(UserError, match="no module 'second' to tap"):
        Recorder(net, ['second'])


def test_no_hook_stays(net, images):
    recorder = Recorder(net, ['head', 'norm'])
    with recorder.probing():
        net(images)
    with recorder.recording(stop=True):
        net(images)
    with pytest.raises(ZeroDivisionError), recorder.recording():
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in net.modules())


def test_overwritten_output_is_kept_as_it_was(net, images):
    expected = net.norm(net.conv(images))
    recorder = Recorder(net, ['norm'])
    with recorder.recording() as features:
        net(images)
    assert (features['norm'][0] >= 0).all()  # before probing: the ReLU's values
    with torch.no_grad(), recorder.probing():
        net(images)
    with recorder.recording() as features:
        net(images)
    assert torch.equal(features['norm'][0], expected)
    assert (expected < 0).any()


def test_gradient_flows_through_a_cloned_tap(net, images):
    recorder = Recorder(net, ['norm'])
    with torch.no_grad(), recorder.probing():
        net(images)
    with recorder.recording() as features:
        net(images)
    features['norm'][0].sum().backward()
    assert net.conv.weight.grad.abs().sum() > 0


def test_stops_after_the_last_tap(net, images):
    ran = []
    net.late.register_forward_hook(lambda *args: ran.append(1))
    recorder = Recorder(net, ['conv', 'norm'])
    with recorder.probing():
        net(images)
    with recorder.recording(stop=True) as features:
        net(images)
        raise AssertionError('the pass should have ended')
    assert len(ran) == 1
    assert len(features['norm']) == 1


def test_stops_where_a_tap_has_run_as_often_as_in_probing(net, images):
    recorder = Recorder(net, ['head', 'conv'])
    with recorder.probing():
        net(images)
    with recorder.recording(stop=True) as features:
        net(images)
        raise AssertionError('the pass should have ended')
    assert len(features['head']) == 3


def test_does_not_stop_where_the_runs_may_be_one_for_each_image(net, images):
    each = nn.ModuleDict(dict(net=net))
    each.forward = lambda images: [net(image[None]) for image in images]
    recorder = Recorder(each, ['net.conv'])
    with recorder.probing(len(images)):
        each(images)
    with recorder.recording(stop=True) as features:
        each(torch.cat([images, images]))
    assert len(features['net.conv']) == 4
    recorder = Recorder(net, ['head', 'conv'])  # levels
    with recorder.probing(len(images)):
        net(images)
    with recorder.recording(stop=True):
        net(torch.cat([images, images]))
        raise AssertionError('the pass should have ended')


def test_a_replaced_module_is_recorded(net, images):
    recorder = Recorder(net, ['norm'])
    net.norm = nn.Identity()
    with recorder.recording() as features:
        net(images)
    assert len(features['norm']) == 1


def test_records_in_inference_mode(net, images):
    recorder = Recorder(net, ['norm'])
    with torch.inference_mode(), recorder.recording() as features:
        net(images)
    assert len(features['norm']) == 1


def test_a_pass_may_fail_once_every_tap_has_run():
    class Annotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x, boxes=None):
            output = self.head(self.body(x))
            self.output = weakref.ref(output)
            return output + boxes.area

    model, x = Annotated(), torch.zeros(1, 2)
    recorder = Recorder(model, ['body'])
    with recorder.probing() as features:
        model(x)
    assert len(features['body']) == 1
    assert model.output() is None  # nothing keeps the activations of the pass that failed
    with recorder.recording(stop=True) as features:
        model(x)
    assert len(features['body']) == 1
    with recorder.recording(), pytest.raises(AttributeError):
        model(x)
    with pytest.raises(AttributeError), Recorder(model, ['body', 'head']).probing():
        model.forward(x.boxes)


@pytest.mark.parametrize('inplace', [True, False])
def test_overwritten_in_training_alone(inplace):
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5, inplace)), torch.zeros(4, 2)
    recorder = Recorder(model, ['0', '1'])
    with recorder.probing():
        model.eval()(x)
    with torch.no_grad(), recorder.recording():
        model.train()(x)
    if not inplace:
        with recorder.recording():
            model(x)
        return
    with (
        pytest.raises(UserError, match=r"the output of '0' is overwritten .* set its inplace to False"),
        recorder.recording(),
    ):
        model(x)


def test_a_compiled_graph_may_write_to_what_it_returns():
    """As torch.compile's usual backend does, which computes an output into a buffer."""

    def backend(graph, inputs):
        @torch.no_grad()
        def run(*args):
            outputs = graph(*args)
            for x in outputs:
                if isinstance(x, torch.Tensor):
                    x.add_(0)
            return outputs

        return run

    model, x = nn.Sequential(nn.Linear(2, 3)), torch.randn(4, 2)
    recorder = Recorder(model, ['0'])
    with recorder.probing():
        expected = model(x)
    with recorder.recording() as features:
        torch.compile(model, backend=backend)(x)
    assert torch.equal(features['0'][0], expected)


def test_the_networks_own_output_is_a_tap_where_it_is_asked_for():
    network, images = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.randn(4, 2)
    with Recorder(network, [''], whole=True).recording(stop=True) as features:
        expected = network(images)
    assert torch.equal(features[''][0], expected)
    with pytest.raises(UserError, match=r"has no module 'x' to tap; nearest names: 0, 1; '' taps its output"):
        Recorder(network, ['x'], whole=True)
    with pytest.raises(UserError, match=r"has no module '' to tap; nearest names: 0, 1"):
        Recorder(network, [''])


def test_probing_twice_finds_the_same(net, images):
    recorder, expected = Recorder(net, ['norm', 'late']), net.norm(net.conv(images))
    for _ in range(2):
        with torch.no_grad(), recorder.probing() as features:
            net(images)
        assert torch.equal(features['norm'][0], expected)  # before the ReLU, in this pass, too
        with recorder.recording() as features:
            net(images)
        assert torch.equal(features['norm'][0], expected)


def test_a_tensor_that_is_returned_twice_is_one_level(images):
    class Twice(nn.Module):
        def forward(self, x):
            y = x + 1
            return y, (8, 8), [y, x * 2]

    net = nn.Sequential(Twice())
    with Recorder(net, ['0']).recording() as features:
        net(images)
    assert len(features['0']) == 2
    assert torch.equal(features['0'][1], images * 2)


def test_networks_of_one_class_are_compiled_for_their_own_taps():
    def recorded(*taps):
        model = Net().eval()
        recorder = Recorder(model, taps)

        def step(x):
            with recorder.recording() as features:
                model(x)
            return {tap: len(levels) for tap, levels in features.items()}

        return torch.compile(step, backend='eager')(torch.randn(2, 3, 8, 8))

    torch._dynamo.reset()
    assert recorded('conv') == {'conv': 1}
    assert recorded('norm') == {'norm': 1}
    assert recorded('conv', 'head') == {'conv': 1, 'head': 3}


@pytest.mark.parametrize('own', [False, True])
def test_a_pass_that_ends_early_leaves_no_forward_replaced(images, own):
    """As networks of transformers do, which collect the states of all layers."""

    class Collecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.ReLU())

        def forward(self, x):
            before = {module: vars(module).get('forward') for module in self.net}
            for module in self.net:
                module.forward = partial(type(module).forward, module)
            x = self.net(x)
            for module, forward in before.items():
                module.forward = forward if own else type(module).forward.__get__(module)
            return x

    network = Collecting()
    for module in network.net if own else ():
        module.forward = module.forward
    recorder = Recorder(network, ['net.0'])
    with recorder.probing(len(images)):
        network(images)
    before = [vars(module).get('forward') for module in network.modules()]
    with recorder.recording(stop=True) as features:
        network(images)
    assert len(features['net.0']) == 1
    assert [vars(module).get('forward') for module in network.modules()] == before
