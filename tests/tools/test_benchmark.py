import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmpretrain.structures import DataSample
from tiny import image_folder
from torch import nn

from kd_plugins.datasets.drawing import draw_voc
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.engine import has_bfloat16
from kd_plugins.errors import UserError

TOOLS = Path(__file__).parents[2] / 'tools'
sys.path.append(str(TOOLS))  # last, since tools/test.py must not hide the standard library's test
_spec = importlib.util.spec_from_file_location('benchmark', TOOLS / 'benchmark.py')
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)
from benchmarks import backbones, loader, losses, race, reid, step, teacher, timing  # noqa: E402

CASES = [case._replace(shape=(6, 3, 4, 4) if len(case.shape) == 4 else (6, 5)) for case in losses.loss_cases(False)]


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(cases):
        monkeypatch.setattr(losses, 'loss_cases', lambda large: cases)
        out = tmp_path / 'out.json'
        try:
            tool.main(['losses', '--device', 'cpu', '--repeats', '2', '--json', str(out)])
        finally:
            result = json.loads(out.read_text())
        return result

    return run


def test_measures_every_loss(run, capsys):
    result = run(CASES)
    assert {'device', 'threads', 'repeats', 'torch'} < result.keys()
    assert result['repeats'] == 2
    assert [case['name'] for case in result['cases']] == [case.name for case in CASES]
    for case in result['cases']:
        allowed = case['tolerance'] if case['name'] == 'CRD' else 1e-4
        assert case['value_disagreement'] <= allowed
        assert case['gradient_disagreement'] <= allowed
        for side in (case['kd_plugins'], case['reference']):
            assert 0 < side['ms_min'] <= side['ms'] <= side['ms_max']
        assert case['speedup'] == pytest.approx(case['reference']['ms'] / case['kd_plugins']['ms'])
    assert 'NST gaussian' in capsys.readouterr().out


def test_compiled_losses_are_measured_beside(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch, 'compile', lambda loss: loss)  # the real one takes a minute
    monkeypatch.setattr(losses, 'loss_cases', lambda full: CASES)
    out = tmp_path / 'out.json'
    options = ['--device', 'cpu', '--repeats', '1', '--json', str(out)]
    tool.main(['losses', '--only', 'AT', '--compile', *options])
    cases = json.loads(out.read_text())['cases']
    assert {case['name'] for case in cases} == {'AT'}
    assert all(case['compiled']['ms'] > 0 for case in cases)
    assert 'compiled ms' in capsys.readouterr().out
    wrong = lambda loss: lambda s, t: loss(s, t).detach() + 0.9 * (loss(s, t) - loss(s, t).detach())  # noqa: E731
    monkeypatch.setattr(torch, 'compile', wrong)
    with pytest.raises(UserError, match=r'^AT \(.*\) and float64 \(compiled\) differ: see the table'):
        tool.main(['losses', '--only', 'AT', '--compile', *options])
    with pytest.raises(UserError, match='no loss is named ResNet'):
        tool.main(['losses', '--only', 'ResNet', *options])


@pytest.mark.parametrize(
    'broken',
    [
        lambda reference: lambda s, t: reference(s, t) * 1.001,  # value and gradient
        lambda reference: lambda s, t: reference(s, t) + 1e-3 * (s - s.detach()).sum(),  # the gradient alone
        lambda reference: lambda s, t: reference(s, t) * torch.nan,
    ],
    ids=['value', 'gradient', 'nan'],
)
def test_disagreement_is_an_error_that_names_the_loss(run, broken):
    kept, case = CASES[0], next(case for case in CASES if case.name == 'SP' and len(case.shape) == 4)
    with pytest.raises(UserError, match=r'^SP \(6, 3, 4, 4\) and the literal form differ'):
        run([kept, case._replace(reference=broken(case.reference))])


def test_several_are_measured_into_one_file_whatever_fails(monkeypatch, tmp_path):
    def measured(args):
        timing.keep(args, dict(figure=len(args.results)))
        if args.command == 'losses':
            raise UserError('two losses differ')

    for module in (losses, step, reid):
        monkeypatch.setattr(module, module.__name__.removeprefix('benchmarks.'), measured)
    out = tmp_path / 'out.json'
    with pytest.raises(UserError, match=r'^two losses differ$'):
        tool.main(['losses', 'step', 'reid', '--device', 'cpu', '--repeats', '2', '--json', str(out)])
    found = json.loads(out.read_text())
    assert {name: part['figure'] for name, part in found.items()} == dict(losses=0, step=1, reid=2)
    assert all(part['device'] == 'cpu' and part['torch'] == torch.__version__ for part in found.values())
    tool.main(['step', '--device', 'cpu', '--json', str(out)])
    assert json.loads(out.read_text())['figure'] == 0
    with pytest.raises(SystemExit):  # an option that not all of them have, before any is measured
        tool.main(['step', 'losses', '--amp', '--json', str(tmp_path / 'none.json')])
    assert not (tmp_path / 'none.json').exists()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='--device cuda: torch finds no such GPU here'):
        tool.main(['losses', 'step', '--device', 'cuda'])


def test_peak_memory_is_the_most_held_at_once():
    def step():
        for _ in range(3):
            kept = torch.empty(2**18)
            more = torch.empty(2**17)
            del kept, more

    assert timing.peak_memory(step, torch.device('cpu')) == 2**20 + 2**19


@pytest.mark.usefixtures('faiss')
def test_retrieval_is_measured_beside_the_usual_way(tmp_path, capsys):
    tool.main(['reid', '--parts', 'rerank', '--scale', '0.01', '--threads', '1', '--json', str(tmp_path / 'out.json')])
    part = json.loads((tmp_path / 'out.json').read_text())['parts']['rerank']
    assert (part['queries'], part['gallery'], part['dimensions']) == (33, 159, 20)
    results = part['results']
    assert list(results) == ['re-ranking', 'dense re-ranking']
    for result in results.values():
        assert result['ratio'] == pytest.approx(result['seconds'][0] / results['re-ranking']['seconds'][0])
        assert result['peak_bytes'] > result['added_bytes'] > 0
    assert 'rerank: 33 queries, 159 gallery items, 20 dimensions, cpu, 1 threads' in capsys.readouterr().out


@pytest.mark.usefixtures('faiss')
def test_every_way_to_score_gives_the_same(tmp_path, capsys):
    reid.reid_features(40, 300, 12, tmp_path)
    tool.main(['reid-run', str(tmp_path), *reid.REID, '--repeats', '2'])
    runs = json.loads(capsys.readouterr().out)['runs']
    assert runs.keys() == reid.REID.keys()
    assert all(len(run['seconds']) == 2 for run in runs.values())
    scores = {name: run.get('mAP') for name, run in runs.items()}
    plain, again = scores['evaluation'], scores['re-ranking']
    assert 0 < plain < 1
    assert scores == {
        'evaluation': plain,
        'evaluation with a bar': plain,
        'usual way': pytest.approx(plain, abs=1e-6),
        're-ranking': again,
        'dense re-ranking': pytest.approx(again, abs=1e-6),
        'product': None,
    }


@pytest.mark.usefixtures('faiss')
def test_disagreeing_retrieval_is_an_error(monkeypatch, tmp_path):
    answer = {name: dict(seconds=[1.0], mAP=score) for name, score in (('re-ranking', 0.5), ('dense re-ranking', 0.6))}
    done = type('Done', (), {'returncode': 0, 'stdout': json.dumps(dict(runs=answer, peak_bytes=2, added_bytes=1))})
    monkeypatch.setattr(reid.subprocess, 'run', lambda *args, **kwargs: done)
    with pytest.raises(UserError, match='rerank: the ways to score disagree'):
        tool.main(['reid', '--parts', 'rerank', '--scale', '0.01'])


def test_processes_that_share_the_gallery_are_measured_beside_one(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        names = [name for name in reid.REID if name in command]
        answer = {name: dict(seconds=[4.0 / (1 + ('pytorch' in command))], mAP=0.5) for name in names}
        line = json.dumps(dict(runs=answer, peak_bytes=2, added_bytes=1))
        return type('Done', (), dict(returncode=0, stdout=line))

    monkeypatch.setattr(reid.subprocess, 'run', run)
    found = {}
    monkeypatch.setattr(reid, 'keep', lambda args, results: found.update(results['parts']))
    tool.main(['reid', '--parts', 'million', '--scale', '0.001', '--threads', '4', '--processes', '2'])
    assert {name: result['ratio'] for name, result in found['million']['results'].items()} == {
        **dict.fromkeys(reid.REID_PARTS['million'][3], 1),
        '2 processes': 0.5,
    }
    assert commands[-1][1:5] == ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
    threads = [command[command.index('--threads') + 1] for command in commands]
    assert threads == [*['4'] * (len(commands) - 1), '2']


@pytest.mark.usefixtures('faiss')
def test_a_process_that_fails_is_reported(monkeypatch):
    monkeypatch.setitem(reid.REID, 're-ranking', None)
    monkeypatch.setattr(reid.sys, 'executable', 'false')
    with pytest.raises(UserError, match='rerank: measuring re-ranking, dense re-ranking failed'):
        tool.main(['reid', '--parts', 'rerank', '--scale', '0.01'])


def test_the_memory_of_a_run_is_not_what_came_before_it(tmp_path):
    reid.reid_features(3, 50, 4, tmp_path)
    command = [sys.executable, str(TOOLS / 'benchmark.py'), 'reid-run', str(tmp_path), 'product']
    code = f'import subprocess; held = bytearray(2**30); del held; subprocess.run({command})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])['added_bytes'] < 2**28


def test_a_configs_images_are_measured_by_steps_and_resized(tmp_path, capsys):
    config = tmp_path / 'config.py'
    image_folder(tmp_path / 'data')
    pipeline = [dict(type='kd_plugins.LoadImage'), dict(type='RandomResizedCrop', scale=8), dict(type='PackInputs')]
    data = dict(type='kd_plugins.UnlabelledImages', data_root=str(tmp_path / 'data'), pipeline=pipeline)
    config.write_text(f'train_dataloader = dict(batch_size=4, dataset={data!r})')
    options = ['--repeats', '2', '--threads', '1', '--device', 'cpu', '--json', str(tmp_path / 'out.json')]
    tool.main(['loader', str(config), '--edge', '10', *options])
    loaders = json.loads((tmp_path / 'out.json').read_text())['loaders']
    assert list(loaders) == ['first step', 'all steps', 'all steps, resized to 10']
    assert loaders['all steps']['ratio'] == 1
    rates = [x['images_per_second'] for x in loaders.values()]
    for rate, measured in zip(rates, loaders.values(), strict=True):
        assert measured['ratio'] == pytest.approx(sum(b / s for s, b in zip(rates[1], rate, strict=True)) / 2)
    assert '24 of 24 images' in capsys.readouterr().out
    views = dict(type='kd_plugins.RepeatedViews', views=2, dataset=data)
    config.write_text(f'train_dataloader = dict(batch_size=4, dataset={views!r})')
    tool.main(['loader', str(config), '--edge', '10', *options])
    assert '24 of 24 images' in capsys.readouterr().out
    for change, message in (
        (
            dict(type='kd_plugins.ResizedImages', edge=8, cache=str(tmp_path / 'cache'), dataset=data),
            'ResizedImages alr',
        ),
        (dict(data, pipeline=[]), 'has no pipeline whose steps'),
    ):
        config.write_text(f'train_dataloader = dict(batch_size=4, dataset={change!r})')
        with pytest.raises(UserError, match=message):
            tool.main(['loader', str(config), *options])


def test_loaders_are_measured_beside_the_stock_one(tmp_path, capsys):
    out = tmp_path / 'out.json'
    tool.main(['loader', '--images', '1500', '--repeats', '2', '--device', 'cpu', '--threads', '1', '--json', str(out)])
    loaders = json.loads(out.read_text())['loaders']
    assert list(loaders) == ['stock', 'batched']
    assert loaders['stock']['ratio'] == 1
    rates = [loaders[name]['images_per_second'] for name in loaders]
    assert loaders['batched']['ratio'] == pytest.approx(sum(b / s for s, b in zip(*rates, strict=True)) / 2)
    assert all(x['times_floor'] > 1 and x['peak_bytes'] > 0 for x in loaders.values())
    assert 'batched' in capsys.readouterr().out


def test_steps_are_measured_in_all_forms(tmp_path, capsys):
    out = tmp_path / 'out.json'
    tool.main(
        [
            'step',
            '--only',
            'kd',
            'fitnet',
            '--batch-size',
            '4',
            '--repeats',
            '1',
            '--device',
            'cpu',
            *['--amp'] * has_bfloat16(),  # emulated, it takes minutes
            '--threads',
            '1',
            '--watch',
            '--json',
            str(out),
        ]
    )
    results = json.loads(out.read_text())['parts']['cifar']
    assert set(results) == {'kd', 'fitnet'}
    for result in results.values():
        names = {'student', 'with teacher', 'distilled', 'in memory', 'cached', 'watched', 'gradients'}
        assert set(result['seconds']) == names
        (alone,), (beside,), (distilled,) = (result['seconds'][x] for x in ('student', 'with teacher', 'distilled'))
        assert result['student'] == pytest.approx(4 / alone)
        assert result['over_percent'] == pytest.approx(100 * (distilled / beside - 1))
        assert len(result['costs']) == 3
        (watched,) = result['seconds']['watched']
        assert result['watched_percent']['watched'] == pytest.approx(100 * (watched / distilled - 1))
        assert 0 < result['peak_bytes']['with teacher'] < 2**30
        assert result['times_floor'] > 1
    assert 'over teacher' in capsys.readouterr().out


def test_a_step_trains_with_what_it_says(monkeypatch, tmp_path):
    args = tool.argparse.Namespace(device='cpu', channels_last=False, amp=False, watch=True)
    totals, asked, logged, run = [], [], [], step.Distillation.__call__
    monkeypatch.setattr(MessageHub, 'update_scalar', lambda self, name, value, resumed: logged.append(name))
    monkeypatch.setattr(step.OptimWrapper, 'update_params', lambda self, loss: totals.append(loss.item()))
    monkeypatch.setattr(step.Distillation, '__call__', lambda self, *x: asked.append(len(totals)) or run(self, *x))
    steps = step.steps_of(step.configs_of('cifar')['kd'], 4, 32, args, str(tmp_path))
    for measured in steps.values():
        measured()
    assert list(steps) == ['student', 'with teacher', 'distilled', 'in memory', 'cached', 'watched', 'gradients']
    assert asked == [2, 3, 4, 5, 6]  # the distilled ones only
    assert totals[0] == totals[1] != totals[2]
    assert (logged.count('train/loss_share/kd'), logged.count('train/gradient/kd')) == (2, 1)
    calls = []
    monkeypatch.setattr(step.Distillation, '__call__', run)
    monkeypatch.setattr(Teacher, '_forward', lambda self, *x: calls.append(x))
    steps['cached']()
    assert not calls
    assert totals[7] == totals[4] == pytest.approx(totals[3])


def test_a_teachers_ways_to_answer_are_measured(tmp_path, capsys):
    out = tmp_path / 'out.json'
    tool.main(
        ['teacher', '--batch-size', '4', '--repeats', '2', '--device', 'cpu', '--threads', '1', '--json', str(out)]
    )
    ways = json.loads(out.read_text())['parts']['cifar']
    assert set(ways) == {name for name in teacher.PASSES if 'compiled' not in name} | {
        f'from the cache: {name}' for name in teacher.TAPS
    }
    for way in ways.values():
        assert len(way['seconds']) == 2
        assert way['ratio'] == pytest.approx(sum(ways['float32']['seconds']) / sum(way['seconds']))
    assert 'from the cache' in capsys.readouterr().out


def race_args(**options):
    return argparse.Namespace(**dict(method='kd', epochs=2, images=256, views=1, data='', teacher='', seed=0) | options)


@pytest.fixture(scope='module')
def race_teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp('race') / 'teacher.pth'
    torch.save(race.build_network(str(race.ROOT / 'configs/cifar10_quick/teacher.py')).state_dict(), path)
    return str(path)


@pytest.mark.parametrize('method', race.METHODS)
def test_all_in_the_race_lower_the_same_loss(method, race_teacher, monkeypatch):
    """One step of each from the same weights; torchdistill's where it is installed."""
    args = race_args(method=method, teacher=race_teacher)
    config = race.race_config(args)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    teacher = race.Classifier(race.load_config(str(race.ROOT / config.custom_hooks[0].teacher.config)), race_teacher)
    torch.manual_seed(0)
    start = race.Classifier(config).state_dict()

    def after(steps):
        student = race.Classifier(config)
        student.load_state_dict(start)
        steps(args, config, student.train(), copy.deepcopy(teacher), 10)(images, labels)
        return dict(student.named_parameters())

    plain = after(race.plain_steps)
    if method == 'kd' and find_spec('torchdistill'):  # its SP divides rows by the sum of their absolute values
        for name, weight in after(race.torchdistill_steps).items():
            torch.testing.assert_close(weight, plain[name], rtol=1e-4, atol=1e-6)
    student = race.build_network(config.filename)
    network = torch.nn.ModuleDict(dict(backbone=student.backbone, neck=student.neck, fc=student.head.fc))
    network.load_state_dict(start)
    student.train().head.loss_module.loss_weight = config.model.head.loss.loss_weight
    hook = dict(config.custom_hooks[0])
    distillation = Distillation(student, hook['teacher'], hook['terms'])
    samples = [DataSample().set_gt_label(label) for label in labels]
    losses = distillation.losses(lambda mode='loss': student(images, samples, mode), images, samples)
    optimizer = torch.optim.SGD(student.parameters(), **race.sgd(config))
    optimizer.param_groups[0]['lr'] *= 0.1  # the schedule's first
    student.parse_losses(losses)[0].backward()
    optimizer.step()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight, plain[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(weight, start[name])


def test_the_race_has_the_schedule_of_the_config(race_teacher):
    config = race.race_config(race_args(epochs=3, teacher=race_teacher))
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = OptimWrapper(torch.optim.SGD([weight], lr=1.0))
    schedules = []
    for scheduler in config.param_scheduler:
        kind = PARAM_SCHEDULERS.get(scheduler.type)
        options = {k: v for k, v in scheduler.items() if k not in ('type', 'convert_to_iter_based')}
        schedules.append(kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=7, **options))
    for i in range(21):
        assert optimizer.param_groups[0]['lr'] == pytest.approx(race.rate_factor(i, 7, 3), abs=1e-12)
        for schedule in schedules:
            schedule.step()


@pytest.mark.parametrize('contestant', ['plain', 'hook', 'compiled'])
def test_a_contestant_trains(contestant, race_teacher, tmp_path, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda step: compiled.append(step) or step)  # the real one takes a minute
    loader.draw_cifar(tmp_path, 200)
    options = ['--images', '160', '--epochs', '2', '--teacher', race_teacher, '--data', str(tmp_path), '--threads', '1']
    tool.main(['race-run', contestant, *options])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(found[name]) for name in ('seconds', 'accuracy')] == [2, 2]
    assert len(compiled) == (contestant == 'compiled')
    assert min(found['seconds']) > 0
    assert all(0 <= x <= 1 and x * 40 == pytest.approx(round(x * 40)) for x in found['accuracy'])  # 40 test images


def test_a_race_is_told_by_the_accuracy_that_all_reach(monkeypatch, capsys):
    answers = dict(
        plain=dict(seconds=[4.0, 4.0], accuracy=[0.2, 0.5]),
        hook=dict(seconds=[4.0, 4.0], accuracy=[0.3, 0.6]),
        fast=dict(seconds=[2.0, 1.0], accuracy=[0.5, 0.7]),
    )

    def run(command, env, **options):
        assert env['CUDA_VISIBLE_DEVICES'] == ''  # all on the CPU
        line = json.dumps(answers[command[3]] | dict(peak_bytes=2**20))
        return type('Done', (), dict(returncode=0, stdout=line))

    monkeypatch.setattr(race.subprocess, 'run', run)
    found = {}
    monkeypatch.setattr(race, 'keep', lambda args, results: found.update(results))
    options = ['--images', '100', '--epochs', '2', '--teacher', __file__]
    tool.main(['race', '--contestants', *answers, *options])
    assert found['target'] == 0.5
    assert {name: result['seconds_to_target'] for name, result in found['results'].items()} == dict(
        plain=8, hook=8, fast=2
    )
    assert found['results']['fast']['ratio'] == pytest.approx(8 / 3)
    assert '2.67 (4.00)' in capsys.readouterr().out
    with pytest.raises(UserError, match='train it by python tools/train'):
        tool.main(['race', '--teacher', 'nosuch.pth'])


@pytest.fixture(scope='module')
def backbone_data(tmp_path_factory):
    """The folders of configs/pretrain, with 30 images to train on, and a teacher."""
    root = tmp_path_factory.mktemp('backbones') / 'data'
    for name, images in {'imagenette-128/train': 12, 'imagenette-128/val': 8, 'tiny-imagenet-40/train': 12}.items():
        image_folder(root / name, images, size=32)
    draw_voc(root / 'VOCdevkit', train=4, val=2, test=1, size=(48, 48))
    teacher = race.build_network(backbones.load_config(str(race.ROOT / backbones.CONFIG)).teacher.config)
    torch.save(teacher.state_dict(), root / 'mobilenet_v2.pth')
    return root


@pytest.fixture
def small_backbones(backbone_data, monkeypatch):
    """The comparison on these, in small images and batches."""
    read = backbones.load_config

    def load_config(path):
        config = read(path)
        config.train_dataloader.update(batch_size=6, num_workers=0)
        inner = config.train_dataloader.dataset.dataset
        inner.pipeline[1].scale = config.custom_hooks[0].teacher.size = 32
        for labelled in (config.default_hooks.knn.bank, config.default_hooks.knn.queries):
            labelled.update(pipeline=[labelled.pipeline[0], labelled.pipeline[-1]], indices=None)
        return config

    monkeypatch.setattr(backbones, 'load_config', load_config)
    monkeypatch.chdir(backbone_data.parent)
    monkeypatch.setenv('METHOD', '')  # which the comparison sets


@pytest.mark.parametrize('contestant', ['views', 'crops'])
def test_a_backbone_trains_and_is_scored_by_its_neighbours(contestant, small_backbones, capsys):
    tool.main(['backbones-run', contestant, '--every', '2', '--epochs', '2', '--threads', '1'])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['images'] == 12  # two batches of the 15
    assert len(found['seconds']) == 2
    assert min(found['seconds']) > 0
    assert found['accuracy'] in [12.5 * n for n in range(9)]  # of eight
    with pytest.raises(UserError, match='--every 3 leaves 10 images, expected at least two batches of 6'):
        tool.main(['backbones-run', contestant, '--every', '3'])


def test_lightly_gets_student_teacher_and_the_same_images(small_backbones, backbone_data, capsys, monkeypatch):
    """By a stand-in that makes the calls of LightlyTrain 0.18, which is not among the requirements."""
    given = {}

    def pretrain(model, method_args, **options):
        given.update(options, teacher=method_args['teacher'])
        given['channels'] = model.feature_dim(), method_args['teacher'].feature_dim()
        assert all(x.training for x in model.modules())
        for _ in range(options['epochs'] * (len(options['data']) // options['batch_size'])):
            maps = model.forward_features(torch.randn(options['batch_size'], 3, 32, 32))
            pooled = model.forward_pool(maps)['pooled_features']
            torch.testing.assert_close(pooled.flatten(1), maps['features'].mean((2, 3)))
        for weight in model.get_model().parameters():
            weight.data.zero_()  # so that it is scored as LightlyTrain has left it: all images are the same

    monkeypatch.setitem(sys.modules, 'lightly_train', types.SimpleNamespace(pretrain=pretrain))
    tool.main(['backbones-run', 'lightly', '--epochs', '2', '--threads', '1'])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {Path(x).name for x in given['data'][:12]} == {f'{i:03d}.png' for i in range(12)}
    assert len(given['data']) == 30
    assert all(Path(x).is_file() for x in given['data'])
    assert given['channels'] == (128, 1280)
    assert 'optim_args' not in given
    assert (found['images'], found['accuracy'], len(found['seconds'])) == (30, 25.0, 2)
    asked = torch.load(backbone_data / 'mobilenet_v2.pth')['backbone.conv1.conv.weight']
    assert torch.equal(given['teacher'].get_model().conv1.conv.weight, asked)
    tool.main(['backbones-run', 'lightly-rate', '--threads', '1'])
    capsys.readouterr()
    assert given['optim_args']['lr'] * (6 / 1536) ** 0.5 == pytest.approx(4e-3)


def test_the_clock_of_a_backbone_counts_training_steps():
    network = nn.Linear(1, 1)
    clock = backbones.Clock(network)
    network(torch.zeros(1, 1))  # a dry run's
    for mode in (True, False):
        with torch.no_grad():
            network.train(mode)(torch.zeros(1, 1))
    network.eval()(torch.zeros(1, 1))
    assert len(clock.times) == 1
    clock.times += [10.0, 11.0, 12.5, 20.0, 22.0, 24.0]
    assert clock.seconds(epochs=2, length=3) == [3.75, 6.0]  # a step's mean, times three


def test_backbones_are_compared_with_lightly(monkeypatch, capsys, small_backbones):
    answers = dict(
        views=dict(seconds=[2.0, 1.0], images=60, accuracy=62.0, peak_bytes=2**20),
        lightly=dict(seconds=[90.0, 60.0], images=1000, accuracy=41.5, peak_bytes=2**21),
    )
    monkeypatch.setattr(backbones, 'in_turn', lambda command, names, options: {name: answers[name] for name in names})
    monkeypatch.setattr(backbones, 'find_spec', lambda name: True)
    found = {}
    monkeypatch.setattr(backbones, 'keep', lambda args, results: found.update(results))
    tool.main(['backbones', '--contestants', *answers, '--epochs', '2'])
    assert found['results']['views']['images_per_second'] == pytest.approx(40)
    assert found['results']['views']['ratio'] == pytest.approx(3)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ('3.00', '62.0', '41.5', 'times LightlyTrain', 'minutes', '2.5'))
    monkeypatch.setattr(backbones, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install lightly-train'):
        tool.main(['backbones', '--contestants', 'lightly'])
