import pytest
import torch
from tiny import classifier, saved_teacher
from torch.nn.functional import batch_norm, conv2d

from kd_plugins.distillation.adapters import ABF
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

STAGES = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']
SUMS = ['backbone.sum1', 'backbone.sum2', 'backbone.sum3']
REVIEW = dict(
    name='review',
    loss=dict(type='kd_plugins.ReviewKDLoss'),
    student=[*STAGES, 'neck.gap'],
    teacher=[*SUMS, 'neck.gap'],
    adapter='abf',
)


def normalised(x, weight):
    """Convolve without padding of borders but for 3 x 3, and standardise over the batch."""
    return batch_norm(conv2d(x, weight, padding=weight.shape[-1] // 2), None, None, training=True)


def test_abf_is_the_papers_fusion():
    torch.manual_seed(0)
    abf = ABF([3, 5, 4], [6, 7, 8]).double()
    levels = [torch.randn(2, c, n, n + 1, dtype=torch.float64) for c, n in ((3, 8), (5, 4), (4, 2))]
    found = abf(levels, [(8, 9), (6, 7), (2, 3)])
    weights = [[x[0].weight for x in group] for group in (abf.reduce, abf.expand)]
    fused = normalised(levels[2], weights[0][2])
    expected = [normalised(fused, weights[1][2])]
    for index, size in ((1, (6, 7)), (0, (8, 9))):
        own = normalised(levels[index], weights[0][index])
        rows, columns = (torch.arange(n) * m // n for n, m in zip(own.shape[2:], fused.shape[2:], strict=True))
        above = fused[:, :, rows][..., columns]  # the nearest neighbours
        attend = abf.attend[index]
        both = torch.cat([own, above], 1).movedim(1, -1) @ attend.weight[:, :, 0, 0].T + attend.bias
        first, second = both.sigmoid()[:, None].unbind(-1)
        fused = own * first + above * second
        rows, columns = (torch.arange(n) * m // n for n, m in zip(size, own.shape[2:], strict=True))
        fused = fused[:, :, rows][..., columns]
        expected.insert(0, normalised(fused, weights[1][index]))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(('last', 'width'), [(64, 64), (1280, 512)])
def test_the_width_of_abf_is_that_of_the_last_level(last, width):
    shapes = {name: tuple(p.shape) for name, p in ABF([16, last], [8, 9]).named_parameters()}
    assert shapes['reduce.0.0.weight'] == (width, 16, 1, 1)
    assert shapes['attend.0.weight'] == (2, 2 * width, 1, 1)
    assert shapes['expand.1.0.weight'] == (9, width, 3, 3)
    assert not list(ABF([16, last], [8, 9]).buffers())


@pytest.fixture
def student():
    return MODELS.build(classifier())


def losses(core, student, images):
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    return core(features, core.teacher_features(images, None), images, None)


@pytest.mark.parametrize(
    ('side', 'sizes'), [(1, [(4, 4), (1, 1)]), (1, [(4, 4), (2, 2)]), (2, [(4, 4), (1, 1)]), (2, [(1, 1), (2, 2)])]
)
def test_a_single_pixel_has_nothing_to_normalise_by(side, sizes):
    """As the pooled features of the last image of an epoch."""
    abf, levels = ABF([3, 4], [5, 6]), [torch.randn(2, 3, 4, 4), torch.randn(2, 4, side, side)]
    assert [x.shape[2:] for x in abf(levels, sizes)] == sizes
    with pytest.raises(ValueError, match=r'a batch of one image.* set drop_last=True in train_dataloader'):
        abf([x[:1] for x in levels], sizes)


def test_a_term_fuses_all_levels_for_each_teacher(student, tmp_path):
    images = torch.randn(6, 3, 16, 16)
    teachers = []
    for width in (4, 6):
        (tmp_path / f'{width}').mkdir()
        teachers.append(saved_teacher(tmp_path / f'{width}', width=width))
    core = Distillation(student, teachers, [REVIEW])
    assert core.dry_run(student, images, None) == [
        'review: ReviewKDLoss student backbone.stage1+backbone.stage2+backbone.stage3+neck.gap (6, 4, 16, 16) '
        '(6, 8, 8, 8) (6, 16, 4, 4) (6, 16, 1, 1) -> teacher 0 backbone.sum1+backbone.sum2+backbone.sum3+neck.gap '
        '(6, 4, 16, 16) (6, 8, 8, 8) (6, 16, 4, 4) (6, 16, 1, 1), teacher 1 '
        'backbone.sum1+backbone.sum2+backbone.sum3+neck.gap (6, 6, 16, 16) (6, 12, 8, 8) (6, 24, 4, 4) (6, 24, 1, 1), '
        'adapter of 18,120 parameters'
    ]
    assert [type(x) for x in core.terms[0].adapters] == [ABF, ABF]
    loss = losses(core, student, images)['loss_review']
    loss.backward()
    assert all(p.grad.any() for p in core.parameters())
    assert student.backbone.stem[0].weight.grad.any()
    term = core.terms[0]
    parts = []
    for index in range(2):
        term.teachers = [index]
        term.adapters = torch.nn.ModuleList([term.adapters[index]]) if index else term.adapters
        parts.append(losses(core, student, images)['loss_review'])
    torch.testing.assert_close(loss, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize(('resize', 'sizes'), [('smaller', [8, 4, 2]), ('teacher', [8, 4, 2]), ('student', [16, 8, 4])])
def test_fused_levels_have_the_teachers_sizes(student, tmp_path, resize, sizes):
    images, seen = torch.randn(6, 3, 16, 16), []

    class Loss(torch.nn.Module):
        def forward(self, student, teacher):
            seen.append((student.shape[1:], teacher.shape[1:]))
            return student.mean()

    term = REVIEW | dict(student=STAGES, teacher=STAGES, resize=resize, loss=Loss())
    teacher = saved_teacher(tmp_path, width=6) | dict(size=8)
    Distillation(student, teacher, [term]).dry_run(student, images, None)
    kept = [(6, 12, 24)[i] for i in range(3)]
    assert [s for s, _ in seen] == [(c, n, n) for c, n in zip(kept, sizes, strict=True)]
    if resize != 'smaller':
        assert all(s == t for s, t in seen)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(student='backbone.stage3', teacher='backbone.stage3'), 'adapter=.abf. fuses maps .* of several levels'),
        (dict(student=[*STAGES, 'neck'], teacher=[*SUMS, 'neck']), 'for the pooled features neck.gap, not neck'),
        (dict(student=STAGES), "student's taps give 3 feature"),
    ],
)
def test_abf_on_what_it_does_not_fuse(student, tmp_path, change, message):
    core = Distillation(student, saved_teacher(tmp_path), [REVIEW | change])
    with pytest.raises(UserError, match=message) as error:
        core.dry_run(student, torch.randn(2, 3, 16, 16), None)
    assert '\n' not in str(error.value)
