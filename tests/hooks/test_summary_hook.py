import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from tiny import classification_config, classifier, image_folder, saved_teacher, train
from torch import nn

from kd_plugins.export.run import load_student
from kd_plugins.hooks.summary_hook import SummaryHook, export_command
from kd_plugins.registry import METRICS, MODELS

pytestmark = pytest.mark.usefixtures('device')
TERMS = [
    dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc', weight=0.5),
    dict(
        name='nst',
        loss=dict(type='kd_plugins.NSTLoss'),
        student='backbone.stage3',
        teacher='backbone.stage3',
        weight=dict(at=[0, 1], value=[5.0, 2.0]),
    ),
]


@METRICS.register_module()
class Scripted(BaseMetric):
    """Scores that a test gives, one for each validation."""

    def __init__(self, name: str, values: list[float]) -> None:
        super().__init__()
        self.name, self.values = name, list(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        scores = {'note': 'a text', self.name: np.float32(self.values.pop(0)), 'second': 0.0}
        return scores if self.name else {}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shared')
    return image_folder(folder / 'data', images=8), saved_teacher(folder)


@pytest.fixture
def summary(monkeypatch):
    """Return what the hook has logged, as a dict by the first word of a line."""
    texts = []
    for level in ('info', 'warning'):
        monkeypatch.setattr(MMLogger, level, lambda self, text, *args, level=level: texts.append((level, text)))

    def rows():
        ((_, text),) = [x for x in texts if x[1].startswith('the run has ended')]
        return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines()[1:]]

    rows.texts = texts
    return rows


def config_of(shared, work_dir, values=(), metric='mAP', **more):
    config = classification_config(
        shared[0],
        work_dir,
        **dict(default_hooks={x: dict(type=f'kd_plugins.{x.title()}Hook') for x in ('summary', 'export')}) | more,
    )
    if values:
        loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
        config.val_dataloader, config.val_cfg = loader, {}
        config.val_evaluator = dict(type='kd_plugins.Scripted', name=metric, values=list(values))
    return config


@pytest.mark.parametrize('way', ['hook', 'model'])
def test_the_summary_of_a_distilled_run(tmp_path, shared, summary, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    distillation = dict(teacher=shared[1] | dict(size=24), terms=TERMS)
    model = dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation)
    more = (
        dict(custom_hooks=[dict(type='kd_plugins.DistillationHook', **distillation)])
        if way == 'hook'
        else dict(model=model)
    )
    config_of(shared, 'run', (0.25, 0.75, 0.5), epochs=3, variant='kd+nst', **more).dump('given.py')
    runner = train(Config.fromfile('given.py'))
    (_, first), (_, student), (_, teacher), (_, terms), (_, last), (_, best), (_, files), (_, export) = summary()
    assert [name for name, _ in summary()] == [
        'config',
        'student',
        'teacher',
        'terms',
        'last',
        'best',
        'files',
        'export',
    ]
    assert first.endswith('given.py, kd+nst')
    networks = [MODELS.build(classifier()), MODELS.build(shared[1]['config'])]
    for text, network, side in zip((student, teacher), networks, (16, 24), strict=True):
        parameters = sum(p.numel() for p in network.parameters())
        assert text.startswith(f'ImageClassifier (CifarResNet), {parameters / 1e6:.3f} M parameters, ')
        macs = 0

        def count(module, inputs, output):
            nonlocal macs
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                macs += output.numel() * module.weight[0].numel()

        for module in network.modules():
            module.register_forward_hook(count)
        network.eval()(torch.zeros(1, 3, side, side))
        assert f' {macs / 1e6:,.1f} M MACs for {side} × {side}' in text
    assert teacher.endswith(f'config=dict(...), checkpoint={shared[1]["checkpoint"]}')
    assert terms == 'kd (KDLoss, weight 0.5), nst (NSTLoss, weight 5 to 2)'
    assert last == 'epoch 3, mAP 0.5'
    assert best.startswith('epoch 2, mAP 0.75 (')
    log = Path(runner.log_dir).name
    assert files == f'run/student.pth, run/result.json, run/{log}/{log}.log'
    # The command names a config and a checkpoint that fit each other, whatever the environment is then.
    assert export == 'kd-export run/given.py run/student.pth --to run/student.onnx'
    _, config, checkpoint, *_ = shlex.split(export)
    network, _ = load_student(Config.fromfile(config), checkpoint, False)
    assert type(network).__name__ == 'ImageClassifier'


def test_the_best_of_a_loss_is_the_least_and_a_resumed_run_knows_earlier_scores(tmp_path, shared, summary):
    config = config_of(shared, tmp_path / 'run', (0.1, 0.4), 'val_loss')
    train(config)
    assert summary()[-3][1].startswith('epoch 1, val_loss 0.1 (')
    assert summary()[-2][1].startswith(f'{tmp_path}/run/student.pth, ')  # not below this folder
    summary.texts.clear()
    config = config_of(shared, tmp_path / 'run', (0.3,), 'val_loss', epochs=3, resume=True)
    config.load_from = str(tmp_path / 'run/epoch_2.pth')  # written before the second validation
    train(config)
    assert [text for _, text in summary()[-4:-2]] == [
        'epoch 3, val_loss 0.3',
        'epoch 1, val_loss 0.1 (chosen on the same data: report the last)',
    ]


def test_the_score_of_a_segmentor_is_its_mean_iou(tmp_path, shared, summary, monkeypatch):
    """mmseg puts the share of right pixels before it; also in the log from which a resumed run takes it."""
    given = Scripted.compute_metrics
    monkeypatch.setattr(Scripted, 'compute_metrics', lambda self, results: {'aAcc': 9.0, **given(self, results)})
    train(config_of(shared, tmp_path / 'run', (0.1, 0.4), 'mIoU'))
    assert dict(summary())['last'] == 'epoch 2, mIoU 0.4'
    summary.texts.clear()
    config = config_of(shared, tmp_path / 'run', (0.3,), 'mIoU', epochs=3, resume=True)
    config.load_from = str(tmp_path / 'run/epoch_2.pth')
    train(config)
    assert [text.partition(' (')[0] for _, text in summary()[-4:-2]] == ['epoch 3, mIoU 0.3', 'epoch 2, mIoU 0.4']


def test_the_best_epoch_may_be_the_one_that_a_run_resumed_from(tmp_path, shared, summary):
    """Its score is not in its checkpoint, which is written before the validation, but in the log beside that."""

    def run(folder, *values, resume=None, every=1):
        summary.texts.clear()
        config = config_of(shared, tmp_path / folder, values, epochs=5, resume=resume is not None)
        config.load_from, config.train_cfg.val_interval = resume and str(resume), every
        config.default_hooks.logger = dict(type='LoggerHook', interval=1)
        runner = train(config)
        return Path(runner.log_dir), [text.partition(' (')[0] for _, text in summary()[-4:-2]]

    older, _ = run('run', 0.9, 0.9, 0.9, 0.9, 0.9)
    older.rename(older.with_name('20200101_000000'))
    run('run', 0.2, 0.8, 0.4, 0.7, 0.6)
    _, scores = run('other', 0.1, 0.1, 0.3, resume=tmp_path / 'run/epoch_2.pth')
    assert scores == ['epoch 5, mAP 0.3', 'epoch 2, mAP 0.8']
    run('seldom', 0.005, 0.004, 0.003, every=2)
    _, scores = run('seldom', 0.002, 0.001, every=2, resume=tmp_path / 'seldom/epoch_3.pth')  # which has no score
    assert scores == ['epoch 5, mAP 0.001', 'epoch 2, mAP 0.005']


def test_networks_that_learn_together_by_iterations_without_scores(tmp_path, shared, summary):
    model = dict(type='kd_plugins.MutualLearning', student=classifier())
    config = config_of(shared, tmp_path / 'run', model=model)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    config.train_dataloader.sampler.type = 'InfiniteSampler'
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False)
    train(config)
    rows = dict(summary())
    assert rows['student'].endswith('for 16 × 16 of a MutualLearning')
    assert rows['last'] == 'iteration 2, not scored'
    assert not {'teacher', 'terms', 'best'} & rows.keys()


def test_a_validation_without_a_metric_is_no_score(tmp_path, shared, summary):
    """CocoMetric returns none where no object was found; mmengine logs its times all the same."""
    runner = train(config_of(shared, tmp_path / 'run', (0.0, 0.0), metric=''))
    assert 'val/data_time' in runner.message_hub.log_scalars
    assert dict(summary())['last'] == 'epoch 2, not scored'


def test_an_error_in_the_summary_fails_no_run(tmp_path, shared, summary, monkeypatch):
    def broken(self, runner):
        raise RuntimeError('out of\nluck')

    monkeypatch.setattr(SummaryHook, '_rows', broken)
    train(config_of(shared, tmp_path / 'run', epochs=1))
    assert ('warning', 'no summary: RuntimeError: out of luck') in summary.texts
    assert (tmp_path / 'run/student.pth').is_file()


def test_a_run_that_fails_or_only_validates_has_no_summary(tmp_path, shared, summary, monkeypatch):
    config = config_of(shared, tmp_path / 'run', (0.1,), epochs=1)
    Runner.from_cfg(config).val()
    monkeypatch.setattr('mmengine.hooks.CheckpointHook.after_train_epoch', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config_of(shared, tmp_path / 'failed', epochs=1))
    assert not any('has ended' in text or 'no summary' in text for _, text in summary.texts)


class Whole(nn.Module):
    """A model of a kind that is not exported."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_the_command_is_that_of_the_place_and_of_the_part_that_is_exported(tmp_path, monkeypatch):
    paths = Path('run/a b.py'), Path('run/student.pth')
    tail = "export.py 'run/a b.py' run/student.pth --to run/student.onnx"
    monkeypatch.chdir(Path(__file__).parents[2])
    network = Whole(backbone=nn.Linear(1, 1)).train()
    assert export_command(*paths, network) == f'python tools/{tail} --backbone'
    assert network.backbone.training
    assert export_command(*paths, MODELS.build(classifier())) == f'python tools/{tail}'
    assert 'Whole is a two-stage detector that is not exported' in export_command(*paths, Whole(roi_head=nn.ReLU()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/export.py').touch()  # another project's
    assert export_command(*paths, network).startswith('kd-export ')
