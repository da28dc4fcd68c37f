"""What all tests share: the seed, and the device that some of them run on."""

import gc
import itertools
import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported: more threads than cores wait for each other longer than small tensors take.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from command_line import CommandLine, two_ranks
from mmengine.logging import MessageHub
from mmengine.runner import Runner

import kd_plugins  # noqa: F401  # before a test imports mmpretrain


def pytest_addoption(parser):
    parser.addoption(
        '--device',
        default='cpu',
        help='where the tests that have the fixture `device` run (default: '
        '%(default)s); on another one, as cuda, those alone run',
    )


def pytest_configure(config):
    if torch.device(config.getoption('--device')).type == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # mmengine takes a GPU where it finds one
    elif torch.cuda.is_available():  # what is equal on a CPU is to be equal there: no TF32, the same order of sums
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        raise pytest.UsageError(f'--device {config.getoption("--device")}: torch finds no GPU here')


def pytest_collection_modifyitems(config, items):
    if torch.device(config.getoption('--device')).type != 'cpu':
        config.hook.pytest_deselected(items=[item for item in items if 'device' not in item.fixturenames])
        items[:] = [item for item in items if 'device' in item.fixturenames]


def pytest_collection_finish(session):
    """Keep what has been imported out of every later collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def _quick_runs():
    """Leave out what takes longer than many a run: configs laid out by yapf, and a collection for each data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))
        patch.setattr('mmengine.dataset.base_dataset.gc', SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(autouse=True, scope='session')
def _own_names():
    """Give each runner a name of its own: mmengine keeps loggers and visualizers by name and second."""
    own, number = Runner.__init__, itertools.count()

    def init(self, *args, experiment_name=None, **options):
        own(self, *args, experiment_name=f'{experiment_name or "run"}-{next(number)}', **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '__init__', init)
        yield


@pytest.fixture(scope='session')
def command():
    """Runs command lines."""
    command = CommandLine()
    yield command
    command.close()


@pytest.fixture(scope='session')
def two_processes(command):
    """Runs a script of ``tests/workers`` as ranks 0 and 1, with a folder for its results."""

    def run(worker: str, folder: Path) -> None:
        script = Path(__file__).parent / 'workers' / worker
        command.start(folder, folder, tool=script, ranks=two_ranks())
        assert command.wait(300) == 0, '\n'.join((folder / f'stderr{rank}').read_text() for rank in ('', '1'))

    return run


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_run(monkeypatch):
    """Forget the runs of other tests: one that an exception has ended counts as one that trains."""
    monkeypatch.setattr(MessageHub, '_instance_dict', OrderedDict())


@pytest.fixture
def hub(_no_run):
    """The message hub of a run that trains."""
    hub = MessageHub.get_instance('trains')
    hub.update_info_dict(dict(loop_stage='train', iter=0, epoch=0, max_iters=1000, max_epochs=10))
    return hub


@pytest.fixture
def low_precision():
    """Let a program's own products of float32 be as rough as they can."""
    before = {place: place.fp32_precision for place in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)}
    torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision = 'bf16', 'tf32'
    yield
    for place, value in before.items():
        place.fp32_precision = value


@pytest.fixture(scope='session')
def faiss():
    """Skip what re-ranks or searches approximately where faiss is not installed."""
    return pytest.importorskip('faiss', reason='re-ranking and approximate search are by faiss')


@pytest.fixture
def device(request) -> torch.device:
    """Where the test runs, by the option ``--device``."""
    return torch.device(request.config.getoption('--device'))


@pytest.fixture
def on_device(device):
    """The same, and what the test makes without naming a device is made there."""
    if device.type == 'cpu':
        yield device
    else:
        with device:
            yield device
