import json
import logging
import time

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tiny import (
    classification_config,
    classifier,
    equal,
    image_folder,
    neighbours_config,
    saved_teacher,
    train,
    weights,
)

from kd_plugins.checkpoint import load_weights, read_checkpoint
from kd_plugins.datasets.corruption import held_out
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS
from kd_plugins.utils.scalars import lines_of, time_of

HOOKS = dict(
    export=dict(type='kd_plugins.ExportHook'),
    reseed=dict(type='kd_plugins.ReseedHook'),
    pretrained_check=dict(type='kd_plugins.PretrainedCheckHook'),
)


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / 'data')


def evaluated(config):
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    config.merge_from_dict(dict(val_dataloader=loader, val_cfg={}, val_evaluator=dict(type='Accuracy')))
    return config


def start_worker(worker, note):
    with open(note, 'a') as file:
        file.write(str(worker))


def test_workers_start_as_the_config_says(tmp_path, data):
    config = classification_config(data, tmp_path / 'run', default_hooks=HOOKS)
    note = tmp_path / 'note'
    config.train_dataloader.update(num_workers=1, worker_init_fn=dict(type=start_worker, note=str(note)))
    train(config)
    assert note.read_text() == '00'  # two epochs
    del config.train_dataloader['worker_init_fn']
    assert train(config).train_dataloader.worker_init_fn is None


def test_export_is_the_last_checkpoint_and_the_last_metrics(tmp_path, data):
    config = classification_config(data, tmp_path / 'run', default_hooks=HOOKS)
    evaluated(config)
    runner = train(config)
    exported = torch.load(tmp_path / 'run/student.pth', weights_only=True)
    assert equal(exported['state_dict'], weights(runner.model))
    assert exported['meta']['epoch'] == 2
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert result['metrics']['epoch'] == 2
    assert result['metrics']['accuracy/top1'] == pytest.approx(
        runner.message_hub.get_scalar('val/accuracy/top1').data[0][-1]
    )


def test_files_of_an_older_run_are_renamed_by_a_new_one(tmp_path, data):
    class Killed(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise KeyboardInterrupt

    def start(hooks=(), **more):
        return train(classification_config(data, tmp_path / 'run', default_hooks=HOOKS, custom_hooks=hooks, **more))

    def left():
        return {path.name for path in (tmp_path / 'run').iterdir() if 'student' in path.name or 'result' in path.name}

    start()
    export = (tmp_path / 'run/student.pth').read_bytes()
    start(resume=True, load_from=str(tmp_path / 'run/epoch_2.pth'))
    assert left() == {'student.pth', 'result.json'}
    with pytest.raises(KeyboardInterrupt):
        start([Killed()])
    assert left() == {'student.pth.earlier', 'result.json.earlier'}
    assert (tmp_path / 'run/student.pth.earlier').read_bytes() == export


class Strange(BaseMetric):
    """A metric with values of all types that metrics of stock packages and of users have."""

    def process(self, data_batch, data_samples):
        self.results.append(None)

    def compute_metrics(self, results):
        return dict(
            tensor=torch.tensor(0.5),
            per_class=np.array([0.25, 1]),
            count=np.int64(3),
            nothing=None,
            text='x',
            nested=dict(a=[torch.ones(2), {1: torch.tensor(True)}]),
            other=range(2),
        )


def test_metrics_that_are_not_numbers_are_exported(tmp_path, data):
    config = classification_config(data, tmp_path / 'run', default_hooks=HOOKS, log_level='INFO')
    evaluated(config)
    config.val_evaluator = [
        dict(type='ConfusionMatrix', num_classes=4),
        dict(type=Strange),
        dict(type='SingleLabelMetric', average=None, num_classes=4),
    ]
    train(config)
    metrics = json.loads((tmp_path / 'run/result.json').read_text())['metrics']
    assert sum(map(sum, metrics.pop('confusion_matrix/result'))) == 24
    assert all(len(metrics.pop(f'single-label/{name}_classwise')) == 4 for name in ('precision', 'recall', 'f1-score'))
    assert metrics == dict(
        tensor=0.5,
        per_class=[0.25, 1],
        count=3,
        nothing=None,
        text='x',
        nested=dict(a=[[1, 1], {'1': True}]),
        other='range(0, 2)',
        epoch=2,
        iter=6,
    )


def test_a_held_out_part_is_evaluated_at_every_validation_and_selects_the_epoch(tmp_path, data):
    def config(folder, **hook):
        config = classification_config(data, tmp_path / folder, epochs=3, default_hooks=HOOKS)
        evaluated(config)
        config.val_dataloader.dataset.pipeline.pop(1)  # the flip
        config.val_cfg = dict(fp16=True)
        if hook:
            held_out = dict(
                config.val_dataloader,
                dataset=dict(
                    type='kd_plugins.Corrupted',
                    dataset=config.val_dataloader.dataset,
                    validation=dict(size=12, part='val'),
                ),
            )
            config.custom_hooks = [
                dict(
                    type='kd_plugins.HeldOutHook',
                    dataloader=held_out,
                    evaluator=dict(type='Accuracy', prefix='validation'),
                    **hook,
                )
            ]
            config.default_hooks.checkpoint = dict(type='CheckpointHook', save_best='validation/top1')
        return config

    plain, runner = train(config('plain')), train(config('run', priority='HIGHEST'))
    assert equal(*(weights(x.model) for x in (plain, runner)))  # evaluation changes neither weights nor random states
    logged = [json.loads(line) for line in next((tmp_path / 'run').glob('*/vis_data/scalars.json')).open()]
    found = [(line['validation/top1'], line['accuracy/top1']) for line in logged if 'validation/top1' in line]
    assert len(found) == 3
    result = json.loads((tmp_path / 'run/result.json').read_text())['metrics']
    assert (result['validation/top1'], result['accuracy/top1']) == found[-1]
    best = max(range(3), key=lambda epoch: found[epoch][0])
    (chosen,) = (tmp_path / 'run').glob('best_validation_top1_*.pth')
    assert chosen.stem.endswith(f'epoch_{best + 1}')
    # The last epoch's accuracy on the twelve images, computed directly.
    model = runner.model.eval()
    hits = []
    for batch in runner.val_dataloader:
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            hits += [(x.pred_label == x.gt_label).item() for x in model.val_step(batch)]
    kept = held_out(sorted(i % 4 for i in range(24)), 12)  # folder after folder
    assert result['validation/top1'] == pytest.approx(100 * sum(hits[i] for i in kept) / 12)


def test_export_under_ema_is_the_average(tmp_path, data):
    config = classification_config(
        data, tmp_path / 'run', default_hooks=HOOKS, custom_hooks=[dict(type='EMAHook', momentum=0.2)]
    )
    runner = train(config)
    checkpoint = read_checkpoint(tmp_path / 'run/epoch_2.pth')
    exported = read_checkpoint(tmp_path / 'run/student.pth')['state_dict']
    assert equal(exported, checkpoint['state_dict'])
    assert not equal(exported, weights(runner.model))


@pytest.mark.parametrize('average', [False, True])
@pytest.mark.parametrize('interval', [2, 5])
def test_export_of_a_run_that_stops_between_two_checkpoints(tmp_path, data, average, interval):
    torch.save({'state_dict': MODELS.build(classifier()).state_dict()}, tmp_path / 'start.pth')
    config = classification_config(data, tmp_path / 'run', epochs=5, default_hooks=dict(HOOKS))
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=interval)
    config.load_from = str(tmp_path / 'start.pth')
    config.custom_hooks = [dict(type='kd_plugins.StopHook', epoch=3)]
    config.custom_hooks += [dict(type='EMAHook', momentum=0.2)] * average
    evaluated(config)
    runner = train(config)
    exported = torch.load(tmp_path / 'run/student.pth', weights_only=True)
    (ema,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook'] or [None]
    assert equal(exported['state_dict'], weights(ema.ema_model.module if ema else runner.model))
    assert (exported['meta']['epoch'], exported['meta']['iter']) == (3, 9)
    assert json.loads((tmp_path / 'run/result.json').read_text())['metrics']['epoch'] == 3


@pytest.mark.parametrize('average', [False, True])
def test_export_of_a_distiller_that_stops_between_two_checkpoints(tmp_path, data, average):
    term = dict(name='fit', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto')
    term |= dict(student='backbone.stage2', teacher='backbone.stage2')
    model = dict(type='kd_plugins.Distiller', student=classifier(), teacher=saved_teacher(tmp_path), terms=[term])
    config = classification_config(data, tmp_path / 'run', model=model, epochs=3, default_hooks=dict(HOOKS))
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=5)
    config.custom_hooks = [dict(type='kd_plugins.StopHook', epoch=1)]
    config.custom_hooks += [dict(type='EMAHook', momentum=0.2)] * average
    runner = train(config)
    exported = torch.load(tmp_path / 'run/student.pth', weights_only=True)['state_dict']
    (ema,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook'] or [None]
    assert equal(exported, weights((ema.ema_model.module if ema else runner.model).student))
    load_weights(MODELS.build(classifier()), tmp_path / 'run/student.pth')


@pytest.mark.parametrize('seed', [0, None])
@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (1, False), (1, True)])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, data, workers, persistent, seed):
    def config(name):
        config = classification_config(data, tmp_path / name, epochs=4, default_hooks=HOOKS)
        config.randomness = dict(seed=seed)
        config.train_dataloader.update(num_workers=workers, persistent_workers=persistent)
        return config

    train(config('whole'))
    resumed = config('resumed')
    resumed.load_from, resumed.resume = str(tmp_path / 'whole/epoch_2.pth'), True
    train(resumed)
    ends = [read_checkpoint(tmp_path / name / 'student.pth')['state_dict'] for name in ('whole', 'resumed')]
    assert equal(*ends)


class Killed(Hook):
    """Ends a run before a validation, after the checkpoint of its epoch or iteration."""

    def __init__(self, at):
        self._at = at

    def before_val_epoch(self, runner):
        if time_of(runner) == self._at:
            raise KeyboardInterrupt


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_validation_that_was_lost_is_made_up(tmp_path, data, by_epoch):
    def config(name):
        config = evaluated(classification_config(data, tmp_path / name, epochs=4, default_hooks=HOOKS))
        if not by_epoch:
            config.train_cfg = dict(by_epoch=False, max_iters=4, val_interval=1)
            config.param_scheduler = None
            config.default_hooks.logger = dict(type='LoggerHook', log_metric_by_epoch=False)
        best = dict(save_best='accuracy/top1', rule='greater')
        config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=by_epoch, **best)
        return config

    def scores(name):
        lines = [line for path in sorted((tmp_path / name).glob('*/vis_data/scalars.json')) for line in lines_of(path)]
        return [(line['step'], line['accuracy/top1']) for line in lines if 'accuracy/top1' in line]

    train(config('whole'))
    for at in (2, 3):
        runner = Runner.from_cfg(config(name := f'killed{at}'))
        runner.register_hook(Killed(at))
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        assert [step for step, _ in scores(name)] == [*range(1, at)]
        resumed = config(name)
        resumed.load_from, resumed.resume = str(tmp_path / name / f'{"epoch" if by_epoch else "iter"}_{at}.pth'), True
        train(resumed)
        assert [step for step, _ in scores(name)] == [1, 2, 3, 4]
        assert scores(name)[:at] == scores('whole')[:at]
        assert [path.name for path in (tmp_path / name).glob('best*')] == [
            path.name for path in (tmp_path / 'whole').glob('best*')
        ]
        if by_epoch:
            assert scores(name) == scores('whole')
            assert equal(*(read_checkpoint(tmp_path / x / 'student.pth')['state_dict'] for x in ('whole', name)))
        train(resumed)  # once more from there: nothing is lost
        assert [step for step, _ in scores(name)] == [1, 2, 3, 4, *range(at + 1, 5)]


class Counted(Hook):
    """Notes when a run is validated."""

    def __init__(self, seen):
        self._seen = seen

    def before_val_epoch(self, runner):
        self._seen.append(time_of(runner))


@pytest.mark.parametrize('kind', ['neighbours', 'intervals', 'an older log', 'a log by epochs'])
def test_a_lost_validation_is_told_from_other_lines(tmp_path, data, kind):
    """Also where a KNNHook has scored, the interval is not the first one, or an earlier run has been there."""
    by_iterations = kind == 'a log by epochs'

    def config():
        hooks = []
        if kind == 'neighbours':
            hooks = neighbours_config(data, tmp_path, neighbours=dict(interval=1)).custom_hooks
        config = evaluated(classification_config(data, tmp_path / 'run', default_hooks=HOOKS, custom_hooks=hooks))
        config.train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
        if kind == 'intervals':
            config.train_cfg.update(val_interval=10, dynamic_intervals=[(1, 1)])
        if by_iterations:
            config.train_cfg, config.param_scheduler = dict(by_epoch=False, max_iters=3, val_interval=1), None
        config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=not by_iterations)
        return config

    if kind == 'an older log':
        train(config())
        time.sleep(1.1)  # logs are named by the second
    runner = Runner.from_cfg(config())
    if by_iterations:
        runner.train()
    else:
        runner.register_hook(Killed(2))
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    resumed = config()
    resumed.load_from, resumed.resume = str(tmp_path / f'run/{"iter" if by_iterations else "epoch"}_2.pth'), True
    seen = []
    runner = Runner.from_cfg(resumed)
    runner.register_hook(Counted(seen))
    runner.train()
    assert seen == ([3] if by_iterations else [2, 3])


def test_epochs_draw_different_augmentations(tmp_path, data):
    """The stock seed of workers repeats: without the hook every epoch flips the same positions of the batch."""

    def run(name, hooks):
        config = classification_config(data, tmp_path / name, epochs=3, default_hooks=hooks)
        config.train_dataloader.num_workers = 1
        config.train_dataloader.sampler.shuffle = False
        config.train_dataloader.dataset.pipeline[-1].meta_keys = ('flip',)
        seen = []
        runner = Runner.from_cfg(config)
        step = runner.model.train_step
        runner.model.train_step = lambda data, optim_wrapper: (
            seen.extend(sample.metainfo.get('flip') for sample in data['data_samples']),
            step(data, optim_wrapper),
        )[1]
        runner.train()
        return [tuple(seen[i : i + 24]) for i in range(0, 72, 24)]

    assert len(set(run('with', HOOKS))) == 3
    assert len(set(run('without', {}))) == 1


def test_a_resumed_run_by_iterations_does_not_repeat_the_draws_of_its_start(tmp_path, data):
    def drawn(name, checkpoint=None):
        config = classification_config(data, tmp_path / name, default_hooks=HOOKS)
        config.train_cfg, config.param_scheduler = dict(by_epoch=False, max_iters=4), None
        config.default_hooks = HOOKS | dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
        config.load_from, config.resume = checkpoint, checkpoint is not None
        runner = Runner.from_cfg(config)
        runner.register_hook(hook := Draw(), 'LOWEST')
        runner.train()
        return hook.numbers

    class Draw(Hook):
        def before_train_epoch(self, runner):
            self.numbers = torch.rand(3)

    whole = drawn('whole')
    resumed = [drawn(name, str(tmp_path / 'whole/iter_2.pth')) for name in ('resumed', 'again')]
    assert torch.equal(*resumed)
    assert not torch.equal(whole, resumed[0])


class TestPretrainedCheck:
    @pytest.fixture
    def source(self, tmp_path):
        torch.manual_seed(3)
        model = MODELS.build(classifier())
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'source.pth')
        return tmp_path / 'source.pth'

    def config(self, data, tmp_path, source, prefix='backbone.', **backbone):
        model = classifier(**backbone)
        model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(source), prefix=prefix)
        return classification_config(data, tmp_path / 'run', model, 1, default_hooks=HOOKS, log_level='INFO')

    @pytest.mark.parametrize('prefix', ['backbone.', 'backbone'])
    def test_logs_the_loaded_tensors(self, tmp_path, data, source, caplog, prefix):
        with caplog.at_level(logging.INFO):
            train(self.config(data, tmp_path, source, prefix))
        log = next((tmp_path / 'run').glob('*/*.log')).read_text()
        assert f'backbone: 42 tensors are those of {source}' in log

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(width=8), 'size mismatch'),
            (dict(depth=14), 'is missing'),
            (dict(depth=14, width=8), 'size mismatch'),
        ],
    )
    def test_refuses_tensors_that_do_not_fit(self, tmp_path, data, source, change, message):
        with pytest.raises(UserError, match=f'backbone does not have its pretrained weights: .*{message}'):
            train(self.config(data, tmp_path, source, **change))

    def test_refuses_left_over_keys(self, tmp_path, data, source):
        deeper = MODELS.build(classifier(14))
        torch.save({'state_dict': deeper.state_dict()}, source)
        with pytest.raises(UserError, match='is left over'):
            train(self.config(data, tmp_path, source))

    def test_ignores_a_resumed_run(self, tmp_path, data, source):
        train(self.config(data, tmp_path, source))
        config = self.config(data, tmp_path, source)
        config.train_cfg.max_epochs = 2
        config.load_from, config.resume = str(tmp_path / 'run/epoch_1.pth'), True
        train(config)


@pytest.mark.parametrize(
    ('network', 'names'),
    [
        (dict(type='kd_plugins.MutualLearning', student=classifier(), peers=2), {'student', 'peer1', 'peer2'}),
        (dict(type='kd_plugins.NativeEnsemble', student=classifier()), {'student', 'ensemble'}),
    ],
)
def test_export_of_networks_that_train_together(tmp_path, data, network, names):
    """The student has its plain keys, and all weights are the averages in the checkpoint."""
    config = classification_config(
        data, tmp_path / 'run', network, default_hooks=HOOKS, custom_hooks=[dict(type='EMAHook', momentum=0.2)]
    )
    evaluated(config)
    model = train(config).model
    saved = read_checkpoint(tmp_path / 'run/epoch_2.pth')['state_dict']
    assert {path.stem for path in (tmp_path / 'run').glob('*.pth')} == names | {'epoch_1', 'epoch_2'}
    student = MODELS.build(classifier())
    load_weights(student, tmp_path / 'run/student.pth')
    own = {key.removeprefix('student.'): x for key, x in saved.items() if key.startswith('student.')}
    assert equal(weights(student), own)
    assert not equal(weights(student), weights(model.student))
    if 'ensemble' in names:
        load_weights(model, tmp_path / 'run/ensemble.pth')
        assert equal(weights(model), saved)
    else:
        for number in range(2):
            peer = read_checkpoint(tmp_path / f'run/peer{number + 1}.pth')
            assert peer['meta']['epoch'] == 2
            load_weights(model.peers[number], tmp_path / f'run/peer{number + 1}.pth')
            assert torch.equal(model.peers[number].head.fc.weight, saved[f'peers.{number}.head.fc.weight'])
    with pytest.raises(UserError, match='is missing'):
        load_weights(MODELS.build(network), tmp_path / 'run/student.pth')
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert result['checkpoint'] == str(tmp_path / 'run/student.pth')
