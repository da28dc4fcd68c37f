import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tiny import classification_config, equal, image_folder, train, weights

from kd_plugins.errors import UserError


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / 'data')


def frozen(data, work_dir, *modules, hooks=(), **more):
    config = classification_config(
        data,
        work_dir,
        epochs=3,
        custom_hooks=[dict(type='kd_plugins.FreezeHook', modules=list(modules)), *hooks],
        **more,
    )
    config.optim_wrapper.optimizer.weight_decay = 0.1
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    config.merge_from_dict(dict(val_dataloader=loader, val_cfg={}, val_evaluator=dict(type='Accuracy')))
    return config


class Start(Hook):
    """Records the initial weights, and the modules' modes at each step."""

    def before_train(self, runner):
        self.weights, self.modes = weights(runner.model), []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = runner.model
        self.modes.append({name: module.training for name, module in model.named_modules()})
        self.gradients = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def run(config):
    runner = Runner.from_cfg(config)
    start = Start()
    runner.register_hook(start)
    runner.train()
    return runner, start


def test_a_frozen_backbone_is_the_same_bytes_and_the_head_trains(tmp_path, data):
    runner, start = run(frozen(data, tmp_path / 'run', 'backbone'))
    after = weights(runner.model)
    assert any('running_mean' in name for name in after)
    for name, value in start.weights.items():
        assert torch.equal(value, after[name]) == name.startswith('backbone.'), name
    assert len(start.modes) == 9  # in all epochs, with validation between them
    for modes in start.modes:
        assert {training for name, training in modes.items() if name.startswith('backbone')} == {False}
        assert modes['head']
    saved = torch.load(tmp_path / 'run/epoch_3.pth', weights_only=False)['state_dict']
    assert equal(saved, after)


def test_without_the_hook_the_backbone_trains(tmp_path, data):
    runner, start = run(frozen(data, tmp_path / 'run', 'head'))
    after = weights(runner.model)
    assert all(torch.equal(start.weights[f'head.fc.{x}'], after[f'head.fc.{x}']) for x in ('weight', 'bias'))
    assert not torch.equal(start.weights['backbone.stem.1.running_mean'], after['backbone.stem.1.running_mean'])
    assert not torch.equal(start.weights['backbone.stem.0.weight'], after['backbone.stem.0.weight'])


def test_a_part_of_the_backbone_can_be_frozen_alone(tmp_path, data):
    runner, start = run(frozen(data, tmp_path / 'run', 'backbone.stem', 'backbone.stage1'))
    after = weights(runner.model)
    for name, value in start.weights.items():
        same = name.startswith(('backbone.stem.', 'backbone.stage1.'))
        assert torch.equal(value, after[name]) == same, name
    assert not start.modes[-1]['backbone.stage1.0.norm1']
    assert start.modes[-1]['backbone.stage2.0.norm1']


def test_the_head_learns_what_it_learns_from_precomputed_features(tmp_path, data):
    """A probe is logistic regression on fixed features: plain SGD on these ends at the same weights."""
    config = frozen(data, tmp_path / 'run', 'backbone')
    config.train_dataloader.dataset.pipeline.pop(1)
    runner = Runner.from_cfg(config)
    model, batches = runner.model, []
    step = model.train_step
    model.train_step = lambda data, optim_wrapper: (
        batches.append(model.data_preprocessor(data, True)),
        step(data, optim_wrapper),
    )[1]
    start = Start()
    runner.register_hook(start)
    runner.train()
    backbone = model.backbone.eval().double()
    weight, bias = (start.weights[f'head.fc.{x}'].double() for x in ('weight', 'bias'))
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for i, batch in enumerate(batches):
        with torch.no_grad():
            features = backbone(batch['inputs'].double())[0].mean((2, 3))
        labels = torch.stack([x.gt_label[0] for x in batch['data_samples']])
        error = ((features @ weight.T + bias).softmax(1) - torch.eye(4, dtype=torch.double)[labels]) / len(labels)
        rate = 0.05 if i < 3 else 0.005
        for parameter, v, gradient in zip((weight, bias), speed, (error.T @ features, error.sum(0)), strict=True):
            v.mul_(0.9).add_(gradient + 0.1 * parameter)
            parameter.sub_(rate * v)
    torch.testing.assert_close(model.head.fc.weight.double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.head.fc.bias.double(), bias, rtol=1e-4, atol=1e-5)


def test_an_average_of_a_frozen_backbone_is_that_backbone(tmp_path, data):
    _, start = run(frozen(data, tmp_path / 'run', 'backbone', hooks=[dict(type='EMAHook', momentum=0.3)]))
    saved = torch.load(tmp_path / 'run/epoch_3.pth', weights_only=False)['state_dict']
    for name, value in start.weights.items():
        assert torch.equal(value, saved[name]) == name.startswith('backbone.'), name


@pytest.mark.parametrize(
    ('modules', 'message'),
    [
        (['backbon'], "ImageClassifier has no module 'backbon' to freeze; nearest names: backbone"),
        (['backbone', 'backbone.stage9'], "no module 'backbone.stage9' to freeze; nearest names: backbone.stage"),
        ([''], "no module '' to freeze"),
        (['backbone', 'head'], 'with backbone, head frozen nothing of ImageClassifier is left to train'),
    ],
)
def test_errors_are_one_line(tmp_path, data, modules, message):
    with pytest.raises(UserError) as error:
        train(frozen(data, tmp_path / 'run', *modules))
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_two_processes_train_the_head_alike_and_leave_the_backbone(tmp_path, two_processes):
    two_processes('freeze_parallel.py', tmp_path)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2)]
    assert equal(ranks[0]['end'], ranks[1]['end'])
    for rank in ranks:
        assert rank['iterations'] == 4
        for name, value in rank['start'].items():
            assert torch.equal(value, rank['end'][name]) == name.startswith('backbone.'), name
