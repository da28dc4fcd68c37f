"""Which errors are reported in one line, and which are defects of the program, whose traceback is shown."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmpretrain.datasets import PackInputs
from torch._utils import ExceptionWrapper

from kd_plugins import errors, tracebacks
from kd_plugins.errors import UserError, one_line_errors, user_named
from kd_plugins.registry import DATA_SAMPLERS, MODELS


def printed(capsys, action):
    with pytest.raises(SystemExit) as end, one_line_errors():
        action()
    assert end.value.code == 1
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(errors, '_named', set())
    monkeypatch.setattr(sys, 'argv', ['train.py', 'cfg.py'])


@pytest.mark.parametrize('named', ['{folder}/data', '{folder}/data/list.txt'])
def test_a_path_that_the_user_named_is_the_users(tmp_path, capsys, named):
    """In a config, or on the command line; the path itself, or what is looked for below it."""
    path = tmp_path / 'data' / 'list.txt'
    assert printed(capsys, lambda: path.open()).startswith('Traceback')
    user_named([named.format(folder=tmp_path)])
    assert printed(capsys, lambda: path.open()) == (
        f'error: {path}: No such file or directory; check the path in the config\n'
    )


def test_a_relative_path_is_the_users_where_a_package_looks_in_a_folder_of_its_own(tmp_path, capsys):
    """As mmdet does for the teacher of its stock LD configs."""
    user_named(['configs/gfl/x.py', 'x.py'])
    path = tmp_path / 'site-packages' / 'configs' / 'gfl' / 'x.py'
    assert printed(capsys, lambda: path.open()).startswith(f'error: {path}: No such file or directory; check the path')
    assert printed(capsys, lambda: (tmp_path / 'x.py').open()).startswith('Traceback')


def test_a_path_on_the_command_line_is_the_users(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['prepare_data.py', 'dtd', f'--root={tmp_path}/dtd'])
    assert printed(capsys, lambda: (tmp_path / 'dtd/a').open()).startswith('error: ')


@pytest.mark.parametrize('path', ['', '/nowhere/that/nobody/named', b''])
def test_a_path_of_the_programs_own_is_a_defect(capsys, path):
    user_named(['', 'data'])
    assert 'Traceback' in printed(capsys, lambda: open(path))  # noqa: SIM115


def test_what_stock_code_refuses_is_reported_with_the_part_of_the_config(capsys):
    assert printed(capsys, lambda: PackInputs()(5)).startswith('error: PackInputs: ')
    line = printed(capsys, lambda: MODELS.build(dict(type='mmpretrain.LinearClsHead', num_classes=4)))
    assert line.startswith('error: LinearClsHead(num_classes=4): TypeError: ')
    assert "'in_channels'" in line
    line = printed(capsys, lambda: MODELS.build(dict(type='mmpretrain.LinearClsHed')))
    assert 'mmpretrain.LinearClsHead' in line


def test_an_object_that_is_half_made_is_not_asked(capsys):
    """Any attribute of such a Config is a recursion without end."""
    assert printed(capsys, lambda: Config(5)).startswith('error: TypeError: cfg_dict must be a dict')


def test_a_module_is_reported_by_its_place_in_the_model(capsys):
    head = MODELS.build(dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=3))
    line = printed(capsys, lambda: head((torch.zeros(2, 5),)))
    assert line.startswith('error: fc (Linear): RuntimeError: mat1 and mat2')


def test_defects_keep_their_traceback(capsys):
    """Of this project's code and of the user's own, also where stock code called it."""

    class Broken(PackInputs):
        def transform(self, results):
            return results['nosuch'] + 1

    assert 'Traceback' in printed(capsys, lambda: Broken()({}))
    assert 'Traceback' in printed(capsys, lambda: Config(dict(a=1)).a.b)


def test_a_defect_of_the_package_keeps_its_traceback_also_where_it_is_installed_beside_the_libraries(
    capsys, monkeypatch
):
    class Broken(PackInputs):
        def transform(self, results):
            return results['nosuch'] + 1

    folder = Path(__file__).parent
    monkeypatch.setattr(tracebacks, '_LIBRARY', tracebacks._LIBRARY | {folder})
    assert printed(capsys, lambda: Broken()({})).startswith('error: KeyError')  # as a library
    monkeypatch.setattr(tracebacks, '_OWN', folder)
    assert 'Traceback' in printed(capsys, lambda: Broken()({}))


@pytest.mark.parametrize('given', ['CifarResNet', 'PKSampler'])
def test_a_constructor_that_refuses_the_options_of_a_config_shows_them(capsys, given):
    """Of a class of this project too, for the options are the config's."""
    registry, options = dict(
        CifarResNet=(MODELS, dict(depth='deep')), PKSampler=(DATA_SAMPLERS, dict(dataset=[1], instances='many'))
    )[given]
    line = printed(capsys, lambda: registry.build(dict(type=f'kd_plugins.{given}', **options)))
    assert line.startswith(f'error: {given}(')
    assert repr([*options.values()][-1]) in line


def test_what_fails_later_in_a_class_of_this_project_is_a_defect(capsys):
    network = MODELS.build(dict(type='kd_plugins.CifarResNet', depth=8))
    assert 'Traceback' in printed(capsys, lambda: network(None, nosuch=5))


def test_the_message_of_a_worker_is_its_last_line(capsys):
    def fail(error):
        try:
            raise error
        except type(error):
            ExceptionWrapper(where='in DataLoader worker process 0').reraise()

    line = printed(capsys, lambda: fail(UserError('a.png: image file is truncated; replace it')))
    assert line == 'error: a.png: image file is truncated; replace it\n'
    assert 'Traceback' in printed(capsys, lambda: fail(KeyError('of this file')))


def test_a_message_is_printed_in_any_locale():
    """As the process itself starts."""
    code = 'from kd_plugins.errors import *\nwith one_line_errors():\n    raise UserError("\\xe9.py does not exist")'
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=False,
        env=dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONPATH=str(Path(__file__).parents[1])),
    )
    assert (done.returncode, done.stderr) == (1, 'error: \\xe9.py does not exist\n')


def test_a_stream_without_settings_is_left_as_it_is(monkeypatch):
    """Such as that of a notebook, or one in memory."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    with pytest.raises(SystemExit), one_line_errors():
        raise UserError('é is missing')
    assert stream.getvalue() == 'error: é is missing\n'


def test_a_log_that_is_closed_keeps_no_traceback(tmp_path, capsys):
    logger = MMLogger.get_instance('closed', log_file=str(tmp_path / 'a.log'))
    line = printed(capsys, lambda: PackInputs()(5))
    assert line.endswith('a.log)\n')
    for handler in logger.handlers:
        handler.close()
    assert 'traceback' not in printed(capsys, lambda: PackInputs()(5))
    logger.handlers.clear()


def test_a_group_that_has_lost_a_process_says_so(capsys):
    def collective():
        raise RuntimeError(
            '[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:19361: '
            'Connection reset by peer'
        )

    assert printed(capsys, collective) == (
        'error: another process of this run has ended, see its error: start all of them again, with --resume\n'
    )


@pytest.mark.parametrize(('raises', 'status'), [('', 0), ("; raise BrokenPipeError('of a worker')", 1)])
def test_a_reader_that_has_read_enough_ends_a_command_in_silence(raises, status):
    """As ``| head`` does; but another pipe that breaks is no reader."""
    code = (
        'import os, sys\nfrom kd_plugins.errors import *\nwith one_line_errors():\n'
        f'    [print("row", flush=True) for _ in range(99999 if {not raises} else 1)]{raises}'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])),
    ) as process:
        process.stdout.readline()
        if not raises:
            process.stdout.close()
        assert ('BrokenPipeError' in process.stderr.read()) == bool(raises)
        assert process.wait() == status


def test_a_full_gpu_says_what_to_make_smaller(capsys):
    def loss():
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')

    assert printed(capsys, loss) == ('error: CUDA out of memory: use a smaller batch_size, smaller images or --amp\n')


class _Hook(Hook):
    """Fails as it is told."""

    def __init__(self, action):
        self.action = action

    def before_run(self, runner):
        self.action()


@pytest.mark.parametrize(
    ('action', 'words'),
    [
        (lambda: PackInputs()(5), 'error: PackInputs: TypeError: '),
        (lambda: None + 1, 'in <lambda>'),  # a defect, with its own traceback
    ],
)
def test_a_type_error_in_a_hook_is_told_as_outside_of_one(capsys, action, words):
    def others(hooks):
        runner = Runner.__new__(Runner)
        runner._hooks = hooks
        runner.call_hook('before_run')

    for hook in (_Hook(action), _Hook(lambda: others([_Hook(action)]))):
        message = printed(capsys, lambda hook=hook: others([hook]))
        assert words in message
        assert '_Hook object' not in message
