"""A teacher's cache keeps maps as all terms pool them, and changes no loss by that."""

import copy
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from tiny import classifier, saved_teacher
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins import losses
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.registry import MODELS

HINT = dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto')
SMALL, LARGE = 'backbone.stage3', 'backbone.stage2'  # 4 x 4 and 8 x 8 of images of 16 x 16
POOLING = [x for x in vars(losses).values() if getattr(x, 'pools', False)]


def classes() -> nn.Module:
    return MODELS.build(classifier())


def steps(
    folder: Path,
    terms: list[dict[str, Any]],
    images: list[Tensor],
    first: Tensor | None = None,
    student: Callable[[], nn.Module] = classes,
    **teacher: Any,
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Return the sum of the losses of each batch, and the shapes of the teacher's features, from the cache."""
    torch.manual_seed(0)
    network = student()
    source = {} if 'build' in teacher else saved_teacher(folder)
    core = Distillation(network, source | teacher, terms)
    core.dry_run(network, images[0] if first is None else first, None)
    sums, shapes = [], []
    for batch in images:
        core.teacher_features(batch, None)
        (targets,) = core.teacher_features(batch, None)
        with core.recorder.recording() as features:
            network(batch, mode='tensor')
        sums.append(float(sum(core(features, [targets], batch, None).values()).detach()))
        shapes += [tuple(x.shape) for levels in targets.values() for x in levels]
    return sums, shapes


def bytes_of_entries(folder: Path) -> list[int]:
    (path,) = folder.glob('*.sqlite')
    with sqlite3.connect(path) as file:
        return [size for (size,) in file.execute('SELECT length(value) FROM answers')]


@pytest.mark.parametrize('kind', POOLING)
def test_losses_that_declare_so_pool_first(kind: type[losses.DistillationLoss]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, 4, 4), torch.randn(4, 6, 12, 8)
    loss = kind()
    loss(student, student)  # makes what it trains

    def value(target: Tensor) -> Tensor:
        torch.manual_seed(1)  # of MGD's masks
        return copy.deepcopy(loss)(student, target)

    assert value(teacher) > 0
    torch.testing.assert_close(value(teacher), value(adaptive_avg_pool2d(teacher, (4, 4))))


def test_which_losses_pool() -> None:
    names = {x.__name__.removesuffix('Loss') for x in POOLING}
    assert names == {'Cosine', 'CWD', 'FitNet', 'MGD', 'NST', 'NSTGAN', 'PKD', 'ReviewKD', 'VID'}


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(loss=dict(type='torch.nn.MSELoss'), resize='student'),  # of another library, pooled by the term
        dict(loss=dict(type='kd_plugins.ATLoss'), adapter=None, resize='student'),
        dict(student=[SMALL, SMALL], teacher=[LARGE, LARGE]),
    ],
)
def test_the_cache_keeps_what_a_term_compares(tmp_path: Path, options: dict[str, Any]) -> None:
    terms = [HINT | dict(student=SMALL, teacher=LARGE) | options]
    images = [torch.randn(5, 3, 16, 16), torch.randn(5, 3, 16, 16)]
    whole, shapes = steps(tmp_path, terms, images)
    assert shapes == [(5, 8, 8, 8)] * 2
    pooled, shapes = steps(tmp_path, terms, images, cache=str(tmp_path / 'cache'))
    assert pooled == whole
    assert shapes == [(5, 8, 4, 4)] * 2
    assert all(8 * 4 * 4 * 4 <= size < 8 * 8 * 8 * 4 for size in bytes_of_entries(tmp_path / 'cache'))


@pytest.mark.parametrize(
    'terms',
    [
        [HINT | dict(student=LARGE, teacher=SMALL)],
        [HINT | dict(student=SMALL, teacher=LARGE, resize='teacher')],
        [dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student=SMALL, teacher=LARGE)],  # pools its own maps
        [HINT | dict(student=[SMALL, LARGE], teacher=[LARGE, LARGE])],
        [
            HINT | dict(student=SMALL, teacher=LARGE),
            dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student=SMALL, teacher=LARGE),
        ],
    ],
)
def test_a_map_that_a_term_takes_whole_is_kept_whole(tmp_path: Path, terms: list[dict[str, Any]]) -> None:
    images = [torch.randn(5, 3, 16, 16)]
    whole, shapes = steps(tmp_path, terms, images)
    assert steps(tmp_path, terms, images, cache=str(tmp_path / 'cache')) == (whole, shapes)


def test_images_of_another_size_than_the_dry_runs_are_kept_whole(tmp_path: Path) -> None:
    terms = [HINT | dict(student=SMALL, teacher=LARGE)]
    first, images = torch.randn(2, 3, 16, 16), [torch.randn(3, 3, 32, 32), torch.randn(3, 3, 16, 16)]
    whole, _ = steps(tmp_path, terms, images, first)
    pooled, shapes = steps(tmp_path, terms, images, first, cache=str(tmp_path / 'cache'))
    assert pooled == whole
    assert shapes == [(3, 8, 16, 16), (3, 8, 4, 4)]


class Maps(BaseModel):
    """Gives maps of these sizes, all by one module where there are several."""

    def __init__(self, channels: int, *sizes: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.sizes, self.tap = nn.Conv2d(3, channels, 1), sizes, nn.Identity()

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> list[Tensor]:
        maps = [adaptive_avg_pool2d(self.conv(inputs), size) for size in self.sizes]
        return self.tap(maps[0] if len(maps) == 1 else maps)


def maps(sizes: list[tuple[int, int]]) -> nn.Module:
    """Return a teacher that gives maps of four channels, and the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Maps(4, *sizes)


@pytest.mark.parametrize(
    ('small', 'large', 'options'),
    [
        ([(4, 4), (2, 2)], [(8, 8), (4, 4)], {}),  # a pyramid, whose levels are pooled to several sizes
        ([(4, 4)], [(8, 8), (4, 4)], dict(teacher_levels=[0])),  # a level of one
        ([(4, 7)], [(8, 14)], {}),  # (4, 4, 7) of 16 x 16 pixels would count as four rows of four cells
    ],
)
def test_what_has_no_one_pooled_form_is_kept_whole(
    tmp_path: Path, small: list[tuple[int, int]], large: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    term = HINT | dict(student='tap', teacher='tap') | options
    images = [torch.randn(3, 3, 16, 14)]
    teacher = dict(build=dict(function=f'{__name__}:maps', sizes=large), data_preprocessor={}, size=16)
    whole, shapes = steps(tmp_path, [term], images, None, lambda: Maps(6, *small), **teacher)
    assert shapes == [(3, 4, *size) for size in large]
    cached = steps(tmp_path, [term], images, None, lambda: Maps(6, *small), **teacher, cache=str(tmp_path / 'cache'))
    assert cached == (whole, shapes)


def test_pooled_and_whole_maps_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(4, 3, 16, 16)
    config = saved_teacher(tmp_path)
    pooled, whole, again = (
        Distillation(classes(), dict(config, cache=str(tmp_path / 'cache')), [term])
        for term in (
            HINT | dict(student=SMALL, teacher=LARGE),
            HINT | dict(student=LARGE, teacher=LARGE),
            HINT | dict(student=SMALL, teacher=LARGE),
        )
    )
    for core in (pooled, whole, again):
        core.dry_run(core.recorder.model, images, None)
    expected = whole.teacher(images, None)[LARGE][0]
    (first,) = pooled.teacher(images, None)[LARGE]
    assert torch.equal(first, adaptive_avg_pool2d(expected, (4, 4)))
    monkeypatch.setattr(Teacher, '_forward', None)  # all is there
    for core, features in ((again, first), (whole, expected)):
        assert torch.equal(core.teacher(images, None)[LARGE][0], features)
    assert len(bytes_of_entries(tmp_path / 'cache')) == 8


def test_half_precision_keeps_its_type(tmp_path: Path) -> None:
    terms = [HINT | dict(student=SMALL, teacher=LARGE)]
    images = torch.randn(4, 3, 16, 16)
    student = classes()
    core = Distillation(student, dict(saved_teacher(tmp_path), cache=str(tmp_path / 'cache')), terms)
    core.dry_run(student, images, None)
    with torch.autocast('cpu', torch.bfloat16):
        (pooled,) = core.teacher(images, None)[LARGE]
        (whole,) = core.teacher.features(images, None)[LARGE]
    assert pooled.dtype == torch.bfloat16
    expected = adaptive_avg_pool2d(whole.float(), (4, 4))
    assert (pooled - expected).abs().max() <= torch.finfo(torch.bfloat16).eps / 2 * expected.abs().max()


def test_the_statistics_of_adapters_stay_as_they_are(tmp_path: Path) -> None:
    adapter = dict(type='kd_plugins.tests.Normalised')
    MODELS.register_module(name='tests.Normalised', module=Normalised, force=True)
    images = torch.randn(4, 3, 16, 16)
    states = []
    for options in ({}, dict(cache=str(tmp_path / 'cache'))):
        torch.manual_seed(0)
        student = classes()
        term = HINT | dict(student=SMALL, teacher=LARGE, adapter=adapter)
        core = Distillation(student, dict(saved_teacher(tmp_path), **options), [term])
        core.dry_run(student, images, None)
        assert all(module.training for module in core.terms[0].adapters.modules())
        states.append(core.state_dict())
    assert states[0]['terms.0.adapters.0.1.num_batches_tracked'] == 1
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class Normalised(nn.Sequential):
    """A 1 x 1 convolution with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
