"""What a user's mistakes, a broken file, a full disk and a kill end in, at the command line of tools/train.py."""

import copy
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from command_line import two_ranks
from mmengine.config import Config
from mmengine.logging import MMLogger
from tiny import classification_config, classifier, equal, image_folder, saved_teacher

from kd_plugins import engine
from kd_plugins.checkpoint import read_checkpoint
from kd_plugins.datasets.drawing import CLASSES, draw_voc
from kd_plugins.engine import alone_in
from kd_plugins.errors import UserError

TRAIN = Path(__file__).parents[2] / 'tools' / 'train.py'
STAGES = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']
KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
NST = dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student=STAGES[2], teacher=STAGES[2], weight=5.0)
HINT = dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), student=STAGES[1], teacher=STAGES[1], adapter='auto')


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """A data folder and a teacher that no test changes."""
    folder = tmp_path_factory.mktemp('shared')
    image_folder(folder / 'data')
    return folder / 'data', saved_teacher(folder)


@pytest.fixture
def config(tmp_path, shared):
    """A run of two epochs with a distillation term; the command line runs in tmp_path."""
    return distilled(tmp_path, shared, KD)


def distilled(folder, shared, *terms, epochs=2):
    data, teacher = shared
    hook = dict(type='kd_plugins.DistillationHook', teacher=dict(teacher), terms=[dict(term) for term in terms])
    config = classification_config(data, folder / 'run', epochs=epochs, custom_hooks=[hook])
    config.default_hooks.export = dict(type='kd_plugins.ExportHook')
    config.custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
    return config


def set_term(config, **options):
    config.custom_hooks[0].terms[0].update(options)


def bad_pickle(config, folder):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(folder / 'executed'),)

    torch.save({'state_dict': {}, 'payload': Attack()}, folder / 'bad.pth')
    config.custom_hooks[0].teacher.checkpoint = str(folder / 'bad.pth')


def truncated(config, folder):
    content = Path(config.custom_hooks[0].teacher.checkpoint).read_bytes()
    (folder / 'bad.pth').write_bytes(content[: len(content) // 2])
    config.custom_hooks[0].teacher.checkpoint = str(folder / 'bad.pth')


def more_classes(config, folder):
    record = classifier(depth=14)
    record['head']['num_classes'] = 7
    config.custom_hooks[0].teacher = dict(config=record, checkpoint=None)


def voc(config, folder):
    draw_voc(folder / 'VOCdevkit', train=4, val=1, test=1, size=(48, 48))
    (folder / 'VOCdevkit/VOC2007/Annotations/000003.xml').write_text('{"not": "XML"}')
    config.train_dataloader.dataset = dict(
        type='kd_plugins.VOCDataset',
        data_root=str(folder / 'VOCdevkit/'),
        data_prefix=dict(sub_data_root='VOC2007/'),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        metainfo=dict(classes=CLASSES),
        pipeline=[],
    )


def corrupt_images(config, folder, workers=0):
    """Copy the data as JPEG files and break one."""
    import cv2

    source = Path(config.train_dataloader.dataset.data_root)
    for path in source.rglob('*.png'):
        target = folder / 'images' / path.parent.name / f'{path.stem}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.imread(str(path)))
    broken = folder / 'images/class1/005.jpg'
    broken.write_bytes(broken.read_bytes()[:200])
    config.train_dataloader.update(num_workers=workers)
    config.train_dataloader.dataset.data_root = str(folder / 'images')
    config.train_dataloader.dataset.pipeline[0] = dict(type='kd_plugins.LoadImage')


def plain(config, **more):
    config.update(custom_hooks=[], **more)


def of_another_network(config, folder):
    torch.save({'net': {'weight': torch.ones(3)}, 'weight': torch.ones(3)}, folder / 'other.pth')
    plain(config, load_from=str(folder / 'other.pth'))


def pickled_annotations(config, folder):
    (folder / 'data.pkl').write_bytes(f"cos\nmkdir\n(S'{folder / 'executed'}'\ntR.".encode())
    plain(config)
    config.train_dataloader.dataset = dict(type='BaseDataset', ann_file=str(folder / 'data.pkl'))


MISTAKES = {
    'load_from another network': (of_another_network, ['load_from: no tensor of', 'other.pth fits ImageClassifier']),
    'pickled annotations': (pickled_annotations, ['.pkl file that the config names', 'os.mkdir', '--allow-pickle']),
    'no iteration': (
        lambda c, f: (plain(c), c.train_dataloader.update(batch_size=25, drop_last=True)),
        ['no iteration to train: 24 samples make 0 batches', 'lower the batch size'],
    ),
    'weights that become NaN without distillation': (
        lambda c, f: plain(c, optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e38))),
        ['not finite after iteration', 'lower the learning rate'],
    ),
    'schedule of no length': (
        lambda c, f: c.update(param_scheduler=[dict(type='CosineAnnealingLR', begin=5, end=2)]),
        ['end should be larger than begin', 'correct the options in the config'],
    ),
    'ratios in the wrong order': (
        lambda c, f: c.train_dataloader.dataset.pipeline.insert(
            1, dict(type='RandomErasing', min_area_ratio=0.5, max_area_ratio=0.4)
        ),
        ['min_area_ratio should be smaller than max_area_ratio; correct the options in the config'],
    ),
    'missing data root': (
        lambda c, f: c.train_dataloader.dataset.update(data_root='nowhere/images'),
        ['nowhere/images', 'check the path'],
    ),
    'missing teacher checkpoint': (
        lambda c, f: c.custom_hooks[0].teacher.update(checkpoint='none.pth'),
        ['checkpoint none.pth does not exist', 'give the path'],
    ),
    'truncated teacher checkpoint': (truncated, ['bad.pth is not a readable checkpoint', 'make it again']),
    'pickled teacher checkpoint': (bad_pickle, ['bad.pth holds pickled code', 'mkdir', '--allow-pickle']),
    'missing load_from': (lambda c, f: c.update(load_from='none.pth'), ['checkpoint none.pth does not exist']),
    'missing pretrained backbone': (
        lambda c, f: c.model.backbone.update(init_cfg=dict(type='Pretrained', checkpoint='none.pth')),
        ['checkpoint none.pth does not exist'],
    ),
    'teacher config missing': (
        lambda c, f: c.custom_hooks[0].teacher.update(config='none.py'),
        ['teacher config none.py does not exist'],
    ),
    'stock teacher config missing': (
        lambda c, f: c.custom_hooks[0].teacher.update(config='mmpretrain::resnet/none.py'),
        ['teacher.config: config mmpretrain::resnet/none.py does not exist', 'nearest names: '],
    ),
    'teacher of another shape': (
        lambda c, f: c.custom_hooks[0].teacher.update(config=classifier(depth=14, width=8)),
        ['teacher.pth does not fit ImageClassifier', 'give the checkpoint of this very network'],
    ),
    'unknown tap of the student': (
        lambda c, f: set_term(c, student='backbone.stage9'),
        ["'backbone.stage9'", 'nearest names', 'backbone.stage3'],
    ),
    'unknown tap of the teacher': (
        lambda c, f: set_term(c, teacher='backbone.layer3'),
        ["'backbone.layer3'", 'nearest names', 'backbone.stage3'],
    ),
    'another class count': (more_classes, ['kd: KDLoss', '(2, 4)', '(2, 7)', 'class']),
    'unmatched channels': (
        lambda c, f: set_term(c, loss=dict(type='kd_plugins.FitNetLoss'), student=STAGES[0], teacher=STAGES[1]),
        ['FitNetLoss', '(2, 4, 16, 16)', '(2, 8, 8, 8)', 'adapter'],
    ),
    'unmatched number of taps': (
        lambda c, f: set_term(c, loss=dict(type='kd_plugins.ATLoss'), student=STAGES, teacher=STAGES[:2]),
        ["term 'kd'", 'give 3 feature(s)', '2', 'give both the same number'],
    ),
    'unknown loss': (
        lambda c, f: set_term(c, loss=dict(type='kd_plugins.NTSLoss')),
        ["'kd_plugins.NTSLoss' is not a registered module", 'kd_plugins.NSTLoss'],
    ),
    'unknown loss without its scope': (
        lambda c, f: set_term(c, loss=dict(type='NSTLos')),
        ["'NSTLos' is not a registered module", 'kd_plugins.NSTLoss'],
    ),
    'misspelt option of a loss': (
        lambda c, f: set_term(c, loss=dict(type='kd_plugins.KDLoss', tua=4.0)),
        ["no option 'tua'", "mean 'tau'"],
    ),
    'option of a loss out of range': (
        lambda c, f: set_term(c, loss=dict(type='kd_plugins.KDLoss', tau=-1.0)),
        ['tau', '-1'],
    ),
    'misspelt option of a term': (lambda c, f: set_term(c, wieght=2.0), ["no option 'wieght'", "mean 'weight'"]),
    'misspelt option of a teacher': (
        lambda c, f: c.custom_hooks[0].teacher.update(chekpoint='x'),
        ["no option 'chekpoint'", "mean 'checkpoint'"],
    ),
    'misspelt option of the hook': (
        lambda c, f: c.custom_hooks[0].update(term=[]),
        ['DistillationHook', "'term'", 'config'],
    ),
    'unknown type in a stock part': (
        lambda c, f: c.model.neck.update(type='GlobalAveragePoling'),
        ["'GlobalAveragePoling' is not in", 'GlobalAveragePooling', 'config'],
    ),
    'unknown hook': (
        lambda c, f: c.custom_hooks[0].update(type='kd_plugins.DistilationHook'),
        ['DistilationHook', 'kd_plugins.DistillationHook'],
    ),
    'misspelt option of a stock part': (
        lambda c, f: c.optim_wrapper.optimizer.update(momentun=0.9),
        ['SGD', "'momentun'", 'config'],
    ),
    'annotation that is not XML': (voc, ['Annotations/000003.xml: not XML', 'restore the annotation']),
    'corrupt JPEG': (corrupt_images, ['images/class1/005.jpg: image file is truncated', '--skip-corrupt']),
    'corrupt JPEG in a worker': (
        lambda c, f: corrupt_images(c, f, workers=1),
        ['images/class1/005.jpg: image file is truncated', '--skip-corrupt'],
    ),
    'required config missing': (
        lambda c, f: c.update(requires=[dict(config='configs/none.py', checkpoint='work_dirs/none/student.pth')]),
        ['configs/none.py', 'does not exist'],
    ),
    'prepare names nothing': (
        lambda c, f: c.update(prepare=[dict(type='kd_plugins.datasets.drawing.draw')]),
        ['kd_plugins.datasets.drawing.draw', 'prepare'],
    ),
}


def error_line(folder, *parts):
    """Return the only line on stderr; the log is on stdout."""
    lines = (folder / 'stderr').read_text().splitlines()
    assert 'Traceback' not in (folder / 'stdout').read_text()
    assert len(lines) == 1, '\n'.join(lines)
    assert lines[0].startswith('error: ')
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_ends_in_one_line(tmp_path, command, config, mistake):
    change, parts = MISTAKES[mistake]
    change(config, tmp_path)
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py') == 1
    error_line(tmp_path, *parts)
    assert not (tmp_path / 'executed').exists()


def test_a_config_that_is_not_there_or_does_not_evaluate(tmp_path, command):
    assert command(tmp_path, 'none.py') == 1
    error_line(tmp_path, 'config none.py does not exist', 'give the path')
    for text, *parts in (
        ('model = dict(\n', 'cfg.py is no valid config', 'SyntaxError'),
        ("_base_ = ['none.py']\n", 'cfg.py names none.py, which does not exist', 'nearest names'),
        ('_base_ = 5\n', 'cfg.py is no valid config', '_base_ has 5'),
        ('model = 1 / 0\n', 'cfg.py is no valid config', 'ZeroDivisionError'),
    ):
        (tmp_path / 'cfg.py').write_text(text)
        assert command(tmp_path, 'cfg.py') == 1
        error_line(tmp_path, *parts)


def test_resuming_from_a_file_that_is_missing_or_cut_short(tmp_path, command, config):
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py', '--resume', 'none.pth') == 1
    error_line(tmp_path, 'checkpoint none.pth does not exist')
    assert command(tmp_path, 'cfg.py') == 0
    whole = (tmp_path / 'run/epoch_1.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[:-100])
    assert command(tmp_path, 'cfg.py', '--resume', 'cut.pth') == 1
    error_line(tmp_path, 'cut.pth is not a readable checkpoint', 'make it again')


def test_a_corrupt_image_is_left_out_if_asked(tmp_path, command, config):
    corrupt_images(config, tmp_path)
    config.log_level = 'WARNING'
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py', '--skip-corrupt') == 0
    assert (tmp_path / 'run/student.pth').is_file()
    assert (tmp_path / 'stdout').read_text().count('class1/005.jpg: image file is truncated') == 1


def test_the_process_itself_ends_with_status_1(tmp_path, config):
    set_term(config, student='backbone.stage9')
    config.dump(tmp_path / 'cfg.py')
    environment = os.environ | dict(OMP_DISPLAY_ENV='TRUE', OMP_NUM_THREADS='1')
    environment.pop('OMP_WAIT_POLICY', None)
    with open(tmp_path / 'stdout', 'w') as stdout:
        done = subprocess.run(
            [sys.executable, TRAIN, 'cfg.py'],
            cwd=tmp_path,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            env=environment,
            text=True,
        )
    assert done.returncode == 1
    shown, _, rest = done.stderr.rpartition('OPENMP DISPLAY ENVIRONMENT END\n')
    assert set(re.findall("OMP_WAIT_POLICY = '(.*)'", shown)) == {'PASSIVE'}  # of every OpenMP library that is loaded
    (tmp_path / 'stderr').write_text(rest)
    error_line(tmp_path, "'backbone.stage9'", 'backbone.stage3')


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, command, shared):
    """The second checkpoint is larger than a file may become, from the first epoch's end on."""
    config = distilled(tmp_path, shared, KD, epochs=1)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', max_keep_ckpts=1)
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py') == 0
    good = (tmp_path / 'run/epoch_1.pth').read_bytes()
    config.train_cfg.max_epochs = 2
    config.dump(tmp_path / 'cfg.py')
    command.start(tmp_path, 'cfg.py', '--resume', limit=len(good) // 2)
    assert command.wait() == 1
    error_line(tmp_path, 'run/epoch_2.pth cannot be written', 'earlier files are kept', 'train.py with --resume')
    assert (tmp_path / 'run/epoch_1.pth').read_bytes() == good
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth*')) == ['epoch_1.pth', 'student.pth']
    assert command(tmp_path, 'cfg.py', '--resume') == 0
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth*')) == ['epoch_2.pth', 'student.pth']


@pytest.mark.parametrize(('value', 'tau', 'weight'), [('nan', 1e-45, 1.0), ('inf', 4.0, 1e39)])
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, command, shared, value, tau, weight):
    """The term starts in the second epoch; its logits, or its weight, exceed what a float32 can hold."""
    schedule = dict(at=[0, 1, 1], value=[0.0, 0.0, weight])
    bad = KD | dict(loss=dict(type='kd_plugins.KDLoss', tau=tau), weight=schedule)
    config = distilled(tmp_path, shared, NST, bad)
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py') == 1
    line = error_line(tmp_path, f'loss_kd is {value} at iteration 4', 'last good checkpoint is kept')
    assert 'nst' not in line
    saved = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    assert saved['meta']['epoch'] == 1
    assert all(tensor.isfinite().all() for tensor in saved['state_dict'].values())
    assert not (tmp_path / 'run/epoch_2.pth').exists()


# A hook that makes the run stand still in the middle of its second epoch, or after its last checkpoint.
PAUSE = """
import time
from contextlib import contextmanager
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

def stand_still():
    Path('paused').touch()
    time.sleep(600)

@HOOKS.register_module()
class Pause(Hook):
    priority = 'LOWEST'
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            stand_still()

@HOOKS.register_module()
class PauseAtLastCheckpoint(Hook):
    def before_train(self, runner):
        import builtins
        import mmengine.hooks.checkpoint_hook as module
        def pausing_open(path, *args, **kwargs):
            if str(path).endswith('last_checkpoint') and runner.epoch == 2:
                stand_still()
            return builtins.open(path, *args, **kwargs)
        module.open = pausing_open
"""


def finish(command, folder, config, *arguments):
    """Run a config to its end; return the student's weights and the result."""
    config.dump(folder / 'cfg.py')
    assert command(folder, 'cfg.py', *arguments) == 0, (folder / 'stderr').read_text()
    assert (folder / 'stderr').read_text() == ''
    weights = torch.load(folder / 'run/student.pth', weights_only=True)['state_dict']
    return weights, json.loads((folder / 'run/result.json').read_text())['metrics']


def interrupt(command, folder, config, sign, hook='Pause'):
    """Run a config until the hook has it stand still, and send its process group a signal; return the status."""
    (folder / 'pause.py').write_text(PAUSE)
    config.custom_imports = dict(imports=['kd_plugins', 'pause'])
    config.custom_hooks.append(dict(type=hook))
    config.dump(folder / 'cfg.py')
    process = command.start(folder, 'cfg.py')
    deadline = time.monotonic() + 120
    while not (folder / 'paused').exists():
        assert time.monotonic() < deadline, (folder / 'stderr').read_text()
        time.sleep(0.02)
    os.killpg(process, sign)
    config.custom_imports.imports.pop()
    config.custom_hooks.pop()
    return command.wait()


@pytest.fixture
def long_run(tmp_path, shared):
    """Return a function that makes the config of a run of three epochs in a folder of its own.

    It has an adapter, momentum, augmentation, a step of the learning rate in the epoch after the kill, and validation.
    """

    def make(name, workers=0):
        folder = tmp_path / name
        folder.mkdir()
        config = distilled(folder, shared, KD, HINT, epochs=3)
        config.param_scheduler[0].milestones = [2]
        config.optim_wrapper.accumulative_counts = 2  # of three iterations an epoch
        config.train_dataloader.num_workers = workers
        config.val_dataloader = copy.deepcopy(config.train_dataloader)
        config.val_dataloader.dataset.pipeline.pop(1)  # what is scored must not depend on chance
        config.val_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
        config.val_cfg, config.val_evaluator = {}, dict(type='Accuracy')
        return folder, config

    return make


@pytest.mark.parametrize(
    ('sign', 'status', 'workers'),
    [(signal.SIGKILL, -9, 0), (signal.SIGKILL, -9, 1), (signal.SIGINT, 130, 1)],
    ids=['kill', 'kill-worker', 'ctrl-c'],
)
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(command, long_run, sign, status, workers):
    whole = finish(command, *long_run('whole', workers))
    folder, config = long_run('stopped', workers)
    assert interrupt(command, folder, config, sign) == status
    assert (folder / 'stderr').read_text().splitlines() == (
        ['stopped by Ctrl-C; continue with --resume'] if sign == signal.SIGINT else []
    )
    assert not (folder / 'run/epoch_2.pth').exists()
    weights, metrics = finish(command, folder, config, '--resume')
    assert equal(weights, whole[0])
    assert metrics == whole[1]
    assert not equal(weights, torch.load(folder / 'run/epoch_2.pth', weights_only=False)['state_dict'])


def test_a_backbone_learns_from_a_folder_of_images(tmp_path, command, shared):
    """Without labels, a head and a validation: both ways, and after a kill, leave the same backbone."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        config = distilled(folder, shared, NST, HINT, epochs=3)
        config.custom_hooks[0].task = 'off'
        config.model.neck = config.model.head = None
        config.train_dataloader.dataset.type = 'kd_plugins.UnlabelledImages'
        config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
        return folder, config

    whole, metrics = finish(command, *make('whole'))
    folder, config = make('stopped')
    assert interrupt(command, folder, config, signal.SIGKILL) == -9
    resumed, _ = finish(command, folder, config, '--resume')
    folder, config = make('model')
    hook = config.custom_hooks.pop()
    config.model = hook | dict(type='kd_plugins.Distiller', student=config.model, input_shape=(3, 16, 16))
    assert equal(whole, resumed)
    assert equal(whole, finish(command, folder, config)[0])
    assert all(key.startswith('backbone.') for key in whole)
    assert metrics == {}


def test_a_kill_between_the_last_checkpoint_and_its_note(command, long_run):
    whole = finish(command, *long_run('whole'))
    folder, config = long_run('stopped')
    assert interrupt(command, folder, config, signal.SIGKILL, 'PauseAtLastCheckpoint') == -9
    assert (folder / 'run/epoch_3.pth').is_file()
    assert (folder / 'run/last_checkpoint').read_text().endswith('epoch_2.pth')
    assert not (folder / 'run/student.pth').exists()
    weights, metrics = finish(command, folder, config, '--resume')
    assert equal(weights, whole[0])
    assert metrics == whole[1]
    assert metrics['accuracy/top1'] > 0


def test_resume_goes_on_with_its_own_run_wherever_the_checkpoints_are(tmp_path, command, shared):
    """A run begun anew over a finished one, and killed before its first checkpoint, is not that one."""
    config = classification_config(shared[0], tmp_path / 'run', epochs=3, custom_hooks=[])
    config.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=3, out_dir='elsewhere', filename_tmpl='step_{}.pth'
    )
    old, _ = finish(command, tmp_path, config)
    config.randomness.seed = 1
    assert interrupt(command, tmp_path, config, signal.SIGKILL) == -9
    new, _ = finish(command, tmp_path, config, '--resume')
    assert (
        'elsewhere/run holds no checkpoint of this run, only of an earlier one: it starts from scratch'
        in (tmp_path / 'stdout').read_text()
    )
    assert not equal(old, new)
    config.train_cfg.max_epochs = 4
    saved = (tmp_path / 'elsewhere/run/step_3.pth').read_bytes()
    (tmp_path / 'elsewhere/run/step_4.pth').write_bytes(saved[:-9])  # cut short
    config.resume = True  # is the same
    finish(command, tmp_path, config)
    output = (tmp_path / 'stdout').read_text()
    assert 'step_4.pth is not a readable checkpoint' in output
    assert 'starts from scratch' not in output
    assert (tmp_path / 'elsewhere/run/step_3.pth').read_bytes() == saved
    assert torch.load(tmp_path / 'elsewhere/run/step_4.pth', weights_only=False)['meta']['epoch'] == 4


def test_amp_takes_the_place_of_another_wrapper(tmp_path, command, config):
    config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py', '--amp') == 0, (tmp_path / 'stderr').read_text()
    used = Config.fromfile(Path(config.work_dir) / 'cfg.py').optim_wrapper
    assert used.type == ('kd_plugins.BF16OptimWrapper' if engine.has_bfloat16() else 'OptimWrapper')
    assert 'loss_scale' not in used
    assert used.optimizer == config.optim_wrapper.optimizer


def test_the_rate_is_scaled_to_the_batch_where_the_config_names_its_own(tmp_path, command, config):
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py', '--auto-scale-lr') == 1
    (line,) = [x for x in (tmp_path / 'stderr').read_text().splitlines() if x.startswith('error: ')]
    assert line.startswith('error: --auto-scale-lr: cfg.py does not say for which batch size its learning rate is')
    config.auto_scale_lr = dict(base_batch_size=16)
    config.param_scheduler = []
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py', '--auto-scale-lr') == 0, (tmp_path / 'stderr').read_text()
    groups = torch.load(Path(config.work_dir) / 'epoch_1.pth', weights_only=False)['optimizer']['param_groups']
    assert {x['lr'] for x in groups} == {0.5 * config.optim_wrapper.optimizer.lr}  # of batches of 8


def test_a_config_without_hooks_leaves_its_result_and_which_labels_were_changed(tmp_path, command, config):
    config.pop('default_hooks')
    config.train_cfg.max_epochs = 1
    config.train_dataloader.dataset = dict(
        type='kd_plugins.Corrupted', dataset=config.train_dataloader.dataset, label_noise=dict(rate=0.5)
    )
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py') == 0, (tmp_path / 'stderr').read_text()
    record = json.loads((Path(config.work_dir) / 'corruption.json').read_text())
    assert record['samples'] == 24
    assert 4 < len(record['changed']) < 14  # half are drawn anew, from four classes: 9 expected
    assert (Path(config.work_dir) / 'result.json').is_file()
    assert (Path(config.work_dir) / 'student.pth').is_file()


def test_a_config_without_checkpoints_trains(tmp_path, command, config):
    config.default_hooks.checkpoint = None
    config.default_hooks.pop('export', None)
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'cfg.py')
    assert command(tmp_path, 'cfg.py') == 0, (tmp_path / 'stderr').read_text()
    assert not list(Path(config.work_dir).glob('*.pth'))


# Notes, when Python begins to shut down, which threads there still are.
LAST_THREADS = """
import atexit, os
from pathlib import Path

@atexit.register
def note():
    names = [Path(f'/proc/self/task/{task}/comm').read_text().strip() for task in os.listdir('/proc/self/task')]
    Path(f'threads{os.environ["RANK"]}').write_text(' '.join(names))
"""


def ranks(folder):
    """Return the environments of two processes that write down the threads they end with."""
    (folder / 'last_threads.py').write_text(LAST_THREADS)
    return two_ranks()


def test_two_processes_train_and_test_on_a_cpu_and_leave_no_thread_behind(command, long_run):
    """A thread of gloo's that outlives the run can abort its process, in one of ten to twenty runs."""
    folder, config = long_run('run')
    config.train_dataloader.batch_size = 4
    config.train_cfg.max_epochs = 2
    config.default_hooks.sync = dict(type='SyncBuffersHook')  # BatchNorm's statistics are each process's own
    config.custom_imports.imports.append('last_threads')
    config.test_dataloader, config.test_cfg, config.test_evaluator = config.val_dataloader, {}, config.val_evaluator
    config.dump(folder / 'cfg.py')

    def threads():
        return [path.read_text().split() for path in sorted(folder.glob('threads?'))]

    assert command(folder, 'cfg.py', '--launcher', 'pytorch', ranks=ranks(folder)) == 0, (
        folder / 'stderr'
    ).read_text() + (folder / 'stderr1').read_text()
    assert [set(x) & {'pt_gloo_runloop'} for x in threads()] == [set(), set()]
    metrics = json.loads((folder / 'run/result.json').read_text())['metrics']
    assert (
        command(
            folder,
            'cfg.py',
            folder / 'run/student.pth',
            '--work-dir',
            folder / 'test',
            '--launcher',
            'pytorch',
            tool='test',
            ranks=ranks(folder),
        )
        == 0
    )
    assert [set(x) & {'pt_gloo_runloop'} for x in threads()] == [set(), set()]
    scores = json.loads((folder / 'stdout').read_text().splitlines()[-1])
    assert scores['accuracy/top1'] == metrics['accuracy/top1']
    assert 'accuracy/top1"' not in (folder / 'stdout1').read_text()
    # Of three iterations an epoch the last waits for its step, which needs both processes' gradients.
    whole = read_checkpoint(folder / 'run/student.pth')['state_dict']
    assert command(folder, 'cfg.py', '--resume', 'run/epoch_1.pth', '--launcher', 'pytorch', ranks=ranks(folder)) == 0
    resumed = read_checkpoint(folder / 'run/student.pth')['state_dict']
    assert not equal(whole, resumed)  # another order of sums
    torch.testing.assert_close(resumed, whole, rtol=1e-5, atol=1e-6)


def test_a_second_training_in_the_folder_of_one_that_runs_is_refused(command, long_run):
    folder, config = long_run('run')
    config.dump(folder / 'cfg.py')
    with alone_in(folder / 'run'):
        assert command(folder, 'cfg.py') == 1
    error_line(folder, f'{folder}/run: another command runs in this folder')


def test_requirements_in_a_circle_are_refused_before_anything_trains(tmp_path, command, config):
    config.requires = [dict(config='b.py', checkpoint='work_dirs/b/student.pth')]
    config.dump(tmp_path / 'a.py')
    config.requires = [dict(config='a.py', checkpoint='work_dirs/a/student.pth')]
    config.dump(tmp_path / 'b.py')
    assert command(tmp_path, 'a.py') == 1
    error_line(tmp_path, 'b.py requires a.py, which requires it in turn')
    assert not (tmp_path / 'run').exists()


def test_a_requirement_that_would_train_in_the_runs_own_folder_is_refused(tmp_path, command, config):
    """It would wait for the folder for ever."""
    config.requires = [dict(config='b.py', checkpoint='none.pth')]
    config.dump(tmp_path / 'a.py')
    config.pop('requires')
    config.dump(tmp_path / 'b.py')
    assert command(tmp_path, 'a.py') == 1
    error_line(tmp_path, 'a.py requires b.py, and both train in', f'{tmp_path}/run: rename one of them')


@pytest.mark.parametrize('by', ['another command that needs it', 'a command of its own'])
def test_of_two_commands_that_need_a_run_one_trains_it_and_the_other_waits(tmp_path, monkeypatch, capsys, by):
    monkeypatch.chdir(tmp_path)
    Path('t.py').write_text("work_dir = 't'")
    found = runpy.run_path(str(TRAIN))
    trained, checkpoint = [], tmp_path / 't/student.pth'
    found['train_once'].__globals__['train_apart'] = lambda path, flags: (trained.append(path), checkpoint.touch())
    run = Config(dict(requires=[dict(config='t.py', checkpoint='t/student.pth')]))
    holds, told = alone_in('t', file='.turn' if by.startswith('another') else '.lock'), []
    holds.__enter__()

    def sleep(seconds):
        told.append(seconds)
        checkpoint.touch()  # the other command ends
        holds.__exit__(None, None, None)

    monkeypatch.setattr('time.sleep', sleep)
    found['train_missing'](run, 'none', [])
    assert (trained, told) == ([], [1])
    checkpoint.unlink()
    found['train_missing'](run, 'none', [])
    assert (trained, told) == (['t.py'], [1])
    found['train_missing'](run, 'none', [])
    assert trained == ['t.py']


def test_a_run_that_was_trained_with_another_config_is_noted(tmp_path, command, config):
    config.val_dataloader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    config.val_cfg, config.val_evaluator = {}, dict(type='Accuracy')
    config.train_cfg.max_epochs = 1
    config.log_level = 'WARNING'
    config.pop('work_dir')
    config.dump(tmp_path / 'b.py')
    config.requires = [dict(config='b.py', checkpoint='work_dirs/b/student.pth')]
    config.compare = dict(b='b.py')
    config.dump(tmp_path / 'a.py')
    for _ in range(2):
        assert command(tmp_path, 'a.py') == 0, (tmp_path / 'stderr').read_text()
        assert 'was trained with another' not in (tmp_path / 'stdout').read_text()
    config.update(requires=[], compare={})
    config.model.head.loss.loss_weight, config.train_cfg.max_epochs = 3.0, 2
    config.dump(tmp_path / 'b.py')
    assert command(tmp_path, 'a.py') == 0
    found = 'work_dirs/b/student.pth was trained with another model and train_cfg than b.py has now: remove work_dirs/b'
    assert (tmp_path / 'stdout').read_text().count(found) == 2  # required, and compared


@pytest.mark.parametrize(
    'named',
    [dict(requires=[dict(config='b.py', checkpoint='none.pth')]), dict(compare=dict(b='b.py'))],
    ids=lambda x: min(x),
)
def test_what_another_config_lacks_is_reported_before_anything_trains(tmp_path, command, config, named):
    config.update(named)
    config.dump(tmp_path / 'a.py')
    config.pop('model')
    config.dump(tmp_path / 'b.py')
    assert command(tmp_path, 'a.py') == 1
    error_line(tmp_path, 'a.py names b.py under requires or compare: b.py has no model')


def test_a_command_started_elsewhere_finds_what_the_config_names_beside_its_folder(tmp_path, command, config):
    """As ``cd tools && python train.py ../configs/...``; the run is where the command was started."""
    home, away = tmp_path / 'home', tmp_path / 'away'
    for folder in (home / 'configs/part', home / 'work_dirs/t', away):
        folder.mkdir(parents=True)
    data, teacher = config.train_dataloader.dataset, config.custom_hooks[0].teacher
    shutil.copytree(data.data_root, home / 'data/images')
    shutil.copy(teacher.checkpoint, home / 'work_dirs/t/student.pth')
    Config(dict(model=teacher.config)).dump(home / 'configs/t.py')
    data.data_root = 'data/images'
    teacher.update(config='configs/t.py', checkpoint='work_dirs/t/student.pth')
    config.requires = [dict(teacher)]
    config.train_cfg.max_epochs = 1
    config.pop('work_dir')
    config.dump(home / 'configs/part/cfg.py')
    assert command(away, '../home/configs/part/cfg.py') == 0, (away / 'stderr').read_text()
    assert (away / 'work_dirs/part/cfg/student.pth').is_file()


def test_a_broken_result_counts_as_none_so_that_it_is_made_again(tmp_path):
    read_result = runpy.run_path(str(TRAIN))['read_result']
    good = dict(metrics=dict(mAP=0.5), checkpoint='c', log='l')
    assert read_result(tmp_path) is None
    for text in ('', json.dumps(good)[:-3], '[]', '{"metrics": 3}', json.dumps(good | dict(metrics={})), '\udce9'):
        (tmp_path / 'result.json').write_text(text, errors='surrogateescape')
        assert read_result(tmp_path) is None
    (tmp_path / 'result.json').write_text(json.dumps(good))
    assert read_result(tmp_path) == good


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Return what trains compared runs beside a block, with a shell's command in place of each training."""
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        Path(f'{name}.py').write_text(f"work_dir = '{name}'")
    found = runpy.run_path(str(TRAIN))['compared_beside'].__wrapped__
    run = Config(dict(compare=dict(a='a.py', b='b.py')))

    def beside(command):
        found.__globals__['command_of'] = lambda path, flags: ['sh', '-c', command, path, *flags]
        return contextmanager(found)(run, ['--amp'])

    return beside


def test_compared_runs_train_one_after_the_other_beside_the_run(tmp_path, beside):
    with beside('echo $0 $1 begins >> log; while [ ! -e go ]; do sleep 0.05; done; echo $0 ends >> log'):
        while not Path('log').exists():
            time.sleep(0.05)
        Path('go').touch()
    assert Path('log').read_text().splitlines() == ['a.py --amp begins', 'a.py ends', 'b.py --amp begins', 'b.py ends']
    Path('b').mkdir()
    Path('b/result.json').write_text(json.dumps(dict(metrics=dict(mAP=0.5), checkpoint='c', log='l')))
    with beside('echo $0 > which'):
        pass
    assert Path('which').read_text() == 'a.py\n'  # the other one has its result


@pytest.mark.parametrize('interrupt', [signal.SIG_IGN, signal.default_int_handler])
def test_compared_runs_stop_with_the_run(tmp_path, beside, interrupt):
    """Also below a shell that runs it in the background, and lets it ignore SIGINT."""
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, interrupt)

    def fail():
        with beside('touch $0.begun; sleep 60; touch $0.ended'):
            while not Path('a.py.begun').exists():
                time.sleep(0.05)
            raise UserError('diverged')

    try:
        with pytest.raises(UserError, match='diverged'):
            fail()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 30
    assert {path.name for path in tmp_path.glob('*.py.*')} == {'a.py.begun'}


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP'])
def test_compared_runs_stop_when_the_run_is_killed(tmp_path, beside, name):
    def killed():
        with beside('touch $0.begun; sleep 60; touch $0.ended'):
            while not Path('a.py.begun').exists():
                time.sleep(0.05)
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(60)

    number = getattr(signal, name)
    began, before = time.monotonic(), signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            killed()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert time.monotonic() - began < 30


def test_a_closed_terminal_stops_no_run_that_ignores_it(beside):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with beside('true'):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """Return what trains a required run, with a shell's command in place of the training."""
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(TRAIN))['train_apart']
    found.__globals__['_GRACE'] = 0.5

    def apart(command):
        found.__globals__['command_of'] = lambda path, flags: ['sh', '-c', command]
        found('a.py', [])

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # below a shell's background job it is ignored
    yield apart
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('name', ['TERM', 'INT'])
def test_a_required_run_ends_with_the_run_that_needs_it(tmp_path, apart, name):
    began, before = time.monotonic(), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            apart(f'trap "touch told; exit" TERM; sleep 0.5; kill -{name} $PPID; sleep 60 & wait; touch ended')
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 30
    assert [path.name for path in tmp_path.iterdir()] == ['told']


def test_a_required_run_that_ends_at_ctrl_c_has_said_so_itself(tmp_path, apart):
    with pytest.raises(SystemExit) as ended:
        apart('sleep 0.5; kill -INT $PPID; sleep 0.3; touch said; exit 130')
    assert ended.value.code == 130
    assert (tmp_path / 'said').exists()
    apart('true')
    with pytest.raises(UserError, match=r'a.py, which this run builds on, failed: see its error above'):
        apart('exit 3')


def comparison(folder, **options):
    """Return a config whose run has left a result, and the function that prints its table."""
    (folder / 'run').mkdir()
    result = dict(metrics={'voc/mAP': 0.25}, checkpoint='c', log='l')
    (folder / 'run/result.json').write_text(json.dumps(result))
    run = dict(compare={}, work_dir=str(folder / 'run')) | options
    return Config(run, cfg_text='-', filename='nst.py'), runpy.run_path(str(TRAIN))['print_comparison']


@pytest.mark.parametrize('name', ['NST [ours/]', 5])
def test_a_note_stands_below_the_table_and_names_are_no_markup(tmp_path, capsys, name):
    config, show = comparison(tmp_path, name=name, note='ahead in 9 of 10 [seeds]')
    show(config, [])
    *table, note = capsys.readouterr().out.splitlines()
    assert any(str(name) in line and '0.25' in line for line in table)
    assert note == 'ahead in 9 of 10 [seeds]'


def test_several_processes_leave_out_what_has_no_result_to_compare_with(tmp_path, monkeypatch, capsys, caplog):
    """They have trained by then, and cannot start another run."""
    monkeypatch.chdir(tmp_path)
    Path('b.py').write_text("work_dir = 'b'")
    config, show = comparison(tmp_path, name='NST', compare=dict(b='b.py'), launcher='pytorch')
    logger = MMLogger.get_instance('comparison')
    logger.addHandler(caplog.handler)
    show(config, [])
    assert 'NST' in capsys.readouterr().out
    assert 'b.py, to compare with, has no result: make it with kd-train b.py' in caplog.text


def test_a_required_run_of_another_variant_is_refused_before_anything_trains(tmp_path, command, config):
    """METHOD holds for required runs too: a student of kd, as the teacher under METHOD=at, would be trained by at."""
    config.requires = [dict(config='b.py', checkpoint='work_dirs/b/kd/student.pth')]
    config.dump(tmp_path / 'a.py')
    config.requires, config.variant = [], 'at'
    config.pop('work_dir')
    config.dump(tmp_path / 'b.py')
    assert command(tmp_path, 'a.py') == 1
    error_line(tmp_path, 'a.py requires work_dirs/b/kd/student.pth, but b.py trains in work_dirs/b/at under METHOD')
    assert not (tmp_path / 'work_dirs/b').exists()
