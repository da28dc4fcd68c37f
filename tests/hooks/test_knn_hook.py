"""Nearest neighbours in real runs, computed again from the networks."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmpretrain.datasets import CustomDataset
from tiny import (
    PREPROCESSOR,
    classification_config,
    classifier,
    equal,
    image_folder,
    neighbours_config,
    saved_teacher,
    train,
    weights,
)

pytest.importorskip('faiss', reason='neighbours are found by faiss')

from kd_plugins.distillation.layout import Tokens, layout_of
from kd_plugins.errors import UserError
from kd_plugins.evaluation import knn_accuracy
from kd_plugins.hooks import KNNHook
from kd_plugins.registry import MODELS

STAGE = 'backbone.stage3'
TERMS = [dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student=STAGE, teacher=STAGE)]
EXPORT = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
QUERIES = [0, 1, 6, 7, 8, 12, 13, 14, 18, 19, 20]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return image_folder(tmp_path / 'data')


@pytest.fixture
def distillation(tmp_path: Path) -> dict:
    return dict(teacher=saved_teacher(tmp_path), terms=TERMS)


def expected(
    model: torch.nn.Module, data: Path, k: int = 5, temperature: float | None = 0.07, tap: str = 'backbone'
) -> float:
    """The accuracy of a module of a classifier, image by image."""
    outputs = []
    model.get_submodule(tap).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    images = CustomDataset(data_root=str(data), pipeline=[dict(type='LoadImageFromFile')])
    features, labels = [], []
    for i in range(len(images)):
        sample = images[i]
        pixels = torch.tensor(sample['img']).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            model.eval().cpu().backbone((pixels - 120) / 60)
        maps = outputs.pop()
        features.append((maps if isinstance(maps, torch.Tensor) else maps[-1]).mean((2, 3))[0].numpy())
        labels.append(sample['gt_label'])
    x, y = np.stack(features), np.array(labels)
    bank = np.setdiff1d(np.arange(24), QUERIES)
    return knn_accuracy(x[bank], y[bank], x[QUERIES], y[QUERIES], k, temperature)


def network(checkpoint: str | Path, depth: int = 8) -> torch.nn.Module:
    model = MODELS.build(classifier(depth))
    model.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    return model


def scalars(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in next(folder.glob('*/vis_data/scalars.json')).open()]
    return [line for line in lines if 'knn/student' in line]


def test_a_run_without_validation_reports_both_after_every_epoch(
    tmp_path: Path, data: Path, distillation: dict
) -> None:
    config = neighbours_config(data, tmp_path / 'run', distillation, default_hooks=EXPORT, epochs=3, log_level='INFO')
    runner = train(config)
    found = scalars(tmp_path / 'run')
    assert [line['step'] for line in found] == [0, 1, 2, 3]
    teacher = expected(network(distillation['teacher']['checkpoint'], 14), data)
    assert [line['knn/teacher'] for line in found] == [pytest.approx(teacher)] * 4
    for epoch in range(1, 4):
        student = expected(network(tmp_path / f'run/epoch_{epoch}.pth'), data)
        assert found[epoch]['knn/student'] == pytest.approx(student)
    assert len({line['knn/student'] for line in found} | {teacher}) > 1
    result = json.loads((tmp_path / 'run/result.json').read_text())['metrics']
    assert result == {k: found[-1][k] for k in ('knn/student', 'knn/teacher')} | dict(epoch=3, iter=9)
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert f'Epoch(knn) [3]  knn/student: {student:.4f}  knn/teacher: {teacher:.4f}' in log
    assert runner.model.training


def test_it_changes_neither_weights_nor_random_states(tmp_path: Path, data: Path, distillation: dict) -> None:
    hook = dict(type='kd_plugins.DistillationHook', **distillation)
    plain = train(classification_config(data, tmp_path / 'plain', custom_hooks=[hook]))
    beside = train(neighbours_config(data, tmp_path / 'beside', distillation))
    assert equal(weights(plain.model), weights(beside.model))
    # In a run without ReseedHook, whose draws go on from one epoch to the next.
    no_seed = dict(default_hooks={}, train_cfg=dict(by_epoch=True, max_epochs=2))
    plain = train(classification_config(data, tmp_path / 'plain', custom_hooks=[hook], **no_seed))
    beside = train(neighbours_config(data, tmp_path / 'beside', distillation, **no_seed))
    assert equal(weights(plain.model), weights(beside.model))


def test_at_a_validation_the_accuracies_are_among_its_metrics(tmp_path: Path, data: Path, distillation: dict) -> None:
    config = neighbours_config(data, tmp_path / 'run', distillation, default_hooks=EXPORT)
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    config.merge_from_dict(dict(val_dataloader=loader, val_cfg={}, val_evaluator=dict(type='Accuracy')))
    config.default_hooks.checkpoint = dict(type='CheckpointHook', save_best='knn/student', rule='greater')
    train(config)
    found = scalars(tmp_path / 'run')
    assert [line['step'] for line in found] == [0, 1, 2]
    assert all(('accuracy/top1' in line) == (line['step'] > 0) for line in found)
    result = json.loads((tmp_path / 'run/result.json').read_text())['metrics']
    assert result['knn/student'] == pytest.approx(expected(network(tmp_path / 'run/epoch_2.pth'), data))
    assert result['knn/teacher'] == found[0]['knn/teacher']
    assert len(list((tmp_path / 'run').glob('best_knn_student_*.pth'))) == 1


def test_a_distiller_reports_what_the_hook_does(tmp_path: Path, data: Path, distillation: dict) -> None:
    by_hook = train(neighbours_config(data, tmp_path / 'hook', distillation))
    model = dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation)
    by_model = train(neighbours_config(data, tmp_path / 'model', model=model))
    assert equal(weights(by_hook.model), weights(by_model.model))
    assert scalars(tmp_path / 'hook') == scalars(tmp_path / 'model')


def test_without_a_teacher_there_is_the_student_alone(tmp_path: Path, data: Path) -> None:
    train(neighbours_config(data, tmp_path / 'run', epochs=1, neighbours=dict(k=3, temperature=None)))
    (_, last) = scalars(tmp_path / 'run')
    assert set(last) == {'knn/student', 'step'}
    assert last['knn/student'] == pytest.approx(expected(network(tmp_path / 'run/epoch_1.pth'), data, 3, None))


def test_a_second_teacher_has_a_number(tmp_path: Path, data: Path, distillation: dict) -> None:
    other = saved_teacher(tmp_path / 'data', 8)
    terms = [dict(TERMS[0], name=f'at{i}', teachers=[i]) for i in range(2)]
    both = dict(teacher=[distillation['teacher'], other], terms=terms)
    train(neighbours_config(data, tmp_path / 'run', both, epochs=1, neighbours=dict(k=1)))
    for name, config, depth in (('teacher', distillation['teacher'], 14), ('teacher1', other, 8)):
        value = expected(network(config['checkpoint'], depth), data, 1)
        assert scalars(tmp_path / 'run')[0][f'knn/{name}'] == pytest.approx(value)


def test_intervals_of_epochs_and_iterations(tmp_path: Path, data: Path) -> None:
    train(neighbours_config(data, tmp_path / 'epochs', epochs=5, neighbours=dict(interval=2)))
    assert [line['step'] for line in scalars(tmp_path / 'epochs')] == [0, 2, 4, 5]
    by_iteration = dict(by_epoch=False, max_iters=7)
    for interval, steps in ((3, [0, 3, 6, 7]), (None, [0, 7])):
        folder = tmp_path / f'iterations{interval}'
        config = neighbours_config(data, folder, neighbours=dict(interval=interval), train_cfg=by_iteration)
        config.train_dataloader.sampler = dict(type='InfiniteSampler')
        config.default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=7))
        train(config)
        found = scalars(folder)
        assert [line['step'] for line in found] == steps
        assert found[-1]['knn/student'] == pytest.approx(expected(network(folder / 'iter_7.pth'), data))


def test_a_validation_does_not_show_accuracies_of_before(tmp_path: Path, data: Path) -> None:
    config = neighbours_config(data, tmp_path / 'run', epochs=2, neighbours=dict(interval=2))
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    config.merge_from_dict(dict(val_dataloader=loader, val_cfg={}, val_evaluator=dict(type='Accuracy')))
    runner = train(config)
    lines = [json.loads(line) for line in next((tmp_path / 'run').glob('*/vis_data/scalars.json')).open()]
    assert [line['step'] for line in lines if 'knn/student' in line] == [0, 2]
    assert [line['step'] for line in lines if 'accuracy/top1' in line] == [1, 2]
    assert not any('knn/student' in line and 'accuracy/top1' in line for line in lines)
    assert 'val/knn/student' in runner.message_hub.log_scalars  # for result.json


def test_averaged_weights_are_those_that_are_exported(tmp_path: Path, data: Path) -> None:
    ema = dict(type='EMAHook', momentum=0.01)
    config = neighbours_config(data, tmp_path / 'run', epochs=4, optim_wrapper=dict(optimizer=dict(type='SGD', lr=2.0)))
    config.custom_hooks.insert(0, ema)
    runner = train(config)
    # The checkpoint's weights are the averaged ones; BatchNorm's statistics are those of the model.
    averaged = network(tmp_path / 'run/epoch_4.pth')
    assert not equal(weights(averaged), weights(runner.model))
    assert scalars(tmp_path / 'run')[-1]['knn/student'] == pytest.approx(expected(averaged, data))
    # A resumed run begins with them.
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'resumed'), resume=True, train_cfg=dict(max_epochs=5)))
    config.load_from = str(tmp_path / 'run/epoch_4.pth')
    train(config)
    assert scalars(tmp_path / 'resumed')[0] == scalars(tmp_path / 'run')[-1]


def test_it_starts_with_the_pretrained_weights_under_an_average_too(tmp_path: Path, data: Path) -> None:
    """An EMAHook copies the network before ``init_cfg`` has loaded them."""
    source = MODELS.build(classifier())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(3).add_(0.05)
    torch.save(source.state_dict(), tmp_path / 'pretrained.pth')
    model = classifier() | dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth')))
    found = []
    for average in (False, True):
        config = neighbours_config(data, tmp_path / f'run{average}', model=model, epochs=1)
        config.custom_hooks += [dict(type='EMAHook')] * average
        train(config)
        found.append(scalars(tmp_path / f'run{average}')[0]['knn/student'])
    assert found == [pytest.approx(expected(source, data))] * 2
    random = neighbours_config(data, tmp_path / 'random', epochs=1)
    train(random)
    assert scalars(tmp_path / 'random')[0]['knn/student'] != found[0]


def test_by_iterations_the_average_is_that_of_the_iteration_that_is_named(tmp_path: Path, data: Path) -> None:
    config = neighbours_config(data, tmp_path / 'run', neighbours=dict(interval=1))
    config.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    config.merge_from_dict(dict(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=4), param_scheduler=None))
    config.optim_wrapper.optimizer.lr = 1.0
    config.default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
    train(config)
    found = scalars(tmp_path / 'run')
    assert [line['step'] for line in found] == [0, 1, 2, 3, 4]
    averaged = [expected(network(tmp_path / f'run/iter_{step}.pth'), data) for step in range(1, 5)]
    assert [line['knn/student'] for line in found[1:]] == pytest.approx(averaged)
    assert all(a != b for a, b in itertools.pairwise(averaged[:3]))  # one step off would show


def test_two_processes_find_what_one_does(
    tmp_path: Path, data: Path, distillation: dict, two_processes: Callable[[str, Path], None]
) -> None:
    torch.save(distillation, tmp_path / 'distillation.pth')
    two_processes('knn_parallel.py', tmp_path)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth', weights_only=False) for rank in range(2)]
    assert ranks[0]['found'] == ranks[1]['found']
    teacher = expected(network(distillation['teacher']['checkpoint'], 14), data)
    assert ranks[0]['found']['val/knn/teacher'] == [pytest.approx(teacher)] * 2
    student = MODELS.build(classifier())
    student.load_state_dict(ranks[0]['weights'])
    assert ranks[0]['found']['val/knn/student'][-1] == pytest.approx(expected(student, data))


@pytest.mark.parametrize('by', ['hook', 'own tap'])
def test_a_convolution_of_the_teacher_is_what_it_is_named_for(
    tmp_path: Path, data: Path, distillation: dict, by: str
) -> None:
    """The run itself lets it compute the BatchNorm that follows."""
    tap = 'backbone.stage1.0.conv1'
    checkpoint = torch.load(distillation['teacher']['checkpoint'], weights_only=True)
    weight = checkpoint['state_dict']['backbone.stage1.0.norm1.weight']
    weight.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0]))  # so that another channel decides
    torch.save(checkpoint, distillation['teacher']['checkpoint'])
    if by == 'own tap':
        distillation['terms'] = [*TERMS, dict(TERMS[0], name='more', student=tap, teacher=tap)]
    train(neighbours_config(data, tmp_path / 'run', distillation, epochs=1, neighbours=dict(teacher=tap)))
    teacher = expected(network(distillation['teacher']['checkpoint'], 14), data, tap=tap)
    assert [line['knn/teacher'] for line in scalars(tmp_path / 'run')] == [pytest.approx(teacher)] * 2


def test_the_output_of_a_teacher_is_a_tap(tmp_path: Path, data: Path) -> None:
    (tmp_path / 'net.py').write_text('from torch import nn\n\n\ndef net():\n    return nn.Conv2d(3, 8, 3, padding=1)\n')
    teacher = dict(build=f'{tmp_path}/net.py:net', data_preprocessor={})
    distillation = dict(teacher=teacher, terms=[dict(TERMS[0], teacher='')])
    train(neighbours_config(data, tmp_path / 'run', distillation, epochs=1))
    assert all(0 <= line['knn/teacher'] <= 100 for line in scalars(tmp_path / 'run'))


def test_a_bank_without_some_classes_is_noted(tmp_path: Path, data: Path) -> None:
    config = neighbours_config(data, tmp_path / 'run', epochs=2, log_level='INFO')
    config.custom_hooks[-1].bank.dataset.indices = 8  # the first two of four folders
    train(config)
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert log.count('bank has no image of the classes class2, class3, so that no such query can be right') == 1


def test_features_of_maps_tokens_and_vectors() -> None:
    class Prefixed(torch.nn.Module):
        num_prefix_tokens = 2

    hook, layout, size = KNNHook({}, {}), layout_of('student', torch.nn.Module(), '', Tokens()), (32, 32)
    x = torch.arange(48.0).reshape(2, 6, 2, 2)
    mean = x.flatten(2).mean(2)
    assert torch.equal(hook._pooled([torch.empty(0), x], layout, size), mean)
    assert torch.equal(hook._pooled([x.movedim(1, -1)], layout, size), mean)  # channels last, as of Swin
    tokens = x.flatten(2).mT
    assert torch.equal(hook._pooled([tokens], layout, size), mean)
    behind = layout_of('teacher', Prefixed(), '', Tokens())
    assert torch.equal(hook._pooled([torch.cat([tokens[:, :2] + 9, tokens], 1)], behind, size), mean)
    assert torch.equal(KNNHook({}, {}, token='class')._pooled([tokens], behind, size), tokens[:, 0])
    assert torch.equal(hook._pooled([x[..., 0, 0]], layout, size), x[..., 0, 0])
    for levels in ([x[None]], []):
        with pytest.raises(UserError, match=r"'' outputs .*, expected maps"):
            hook._pooled(levels, layout, size)


def test_a_backbone_alone_learns_from_images_without_labels(tmp_path: Path, data: Path, distillation: dict) -> None:
    """No head, no labels to train on, no validation; and as without the hook, bit for bit."""
    backbone = classifier()['backbone']
    model = dict(type='ImageClassifier', backbone=backbone, data_preprocessor=dict(PREPROCESSOR))
    images = dict(
        type='kd_plugins.UnlabelledImages',
        data_root=str(data),
        pipeline=[dict(type='kd_plugins.LoadImage'), dict(type='PackInputs')],
    )
    distillation |= dict(task='off')
    config = neighbours_config(data, tmp_path / 'run', distillation, model=model, default_hooks=EXPORT)
    config.train_dataloader.dataset = images
    runner = train(config)
    exported = torch.load(tmp_path / 'run/student.pth', weights_only=True)['state_dict']
    assert exported.keys() == runner.model.state_dict().keys()
    assert all(key.startswith('backbone.') for key in exported)
    found = scalars(tmp_path / 'run')
    assert found[-1]['knn/student'] == pytest.approx(expected(runner.model, data))
    assert found[0]['knn/teacher'] == pytest.approx(expected(network(distillation['teacher']['checkpoint'], 14), data))
    config = neighbours_config(data, tmp_path / 'plain', model=model)
    config.train_dataloader.dataset = images
    config.custom_hooks = [dict(type='kd_plugins.DistillationHook', **distillation)]
    assert equal(weights(train(config).model), weights(runner.model))


def test_mistakes_end_in_one_line_before_training(
    tmp_path: Path, data: Path, distillation: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled = dict(
        type='kd_plugins.UnlabelledImages',
        data_root=str(data),
        pipeline=[dict(type='kd_plugins.LoadImage'), dict(type='PackInputs')],
    )
    other = dict(type='CustomDataset', data_root=str(image_folder(tmp_path / 'more')), pipeline=unlabelled['pipeline'])
    (tmp_path / 'more/class3').rename(tmp_path / 'more/another')
    for options, message in (
        (dict(bank=unlabelled), r'an image of bank has no single gt_label'),
        (dict(queries=other), r'bank has the classes class0, class1, class2 \(and 1 more\), queries another, class0'),
        (dict(student='backbon'), r"has no module 'backbon' to tap; nearest names: backbone"),
        (dict(k=0), r'k=0, .*expected at least 1'),
        (dict(interval=0), r"interval=0; expected 'mean' or 'class', and at least 1"),
        (dict(token='first'), r"token='first'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            train(neighbours_config(data, tmp_path / 'run', neighbours=options))
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match=r"has no module 'neck\.x' to tap"):
        train(neighbours_config(data, tmp_path / 'run', distillation, neighbours=dict(teacher='neck.x')))
    monkeypatch.delitem(sys.modules, 'kd_plugins.evaluation.knn')
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(UserError, match=r"knn_accuracy needs faiss, .*pip install -e '\.\[reid\]'"):
        train(neighbours_config(data, tmp_path / 'run'))
