import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _load_checkpoint
from tiny import classification_config, image_folder, train

from kd_plugins.checkpoint import (
    AtomicBackend,
    guard_checkpoints,
    latest_checkpoint,
    load_weights,
    read_checkpoint,
    save_weights,
)
from kd_plugins.errors import UserError


class Attack:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_reads_what_a_run_saves(tmp_path):
    runner = train(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    checkpoint = read_checkpoint(tmp_path / 'run' / 'epoch_2.pth')
    assert checkpoint['meta']['epoch'] == 2
    assert isinstance(checkpoint['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    assert torch.equal(checkpoint['state_dict']['head.fc.weight'], runner.model.head.fc.weight)


def test_pickled_code_is_refused_unless_asked(tmp_path):
    path, marker = tmp_path / 'x.pth', tmp_path / 'executed'
    torch.save({'state_dict': {}, 'payload': Attack(marker)}, path)
    with pytest.raises(UserError, match=r'holds pickled code.*--allow-pickle'):
        read_checkpoint(path)
    assert not marker.exists()
    read_checkpoint(path, allow_pickle=True)
    assert marker.exists()


class Getattr:
    """Asks ``getattr`` for a function through an allowed class."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_reaches_only_the_log(tmp_path):
    torch.save({'x': Getattr()}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'refused|no readable'):
        read_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize('content', [b'', b'no checkpoint at all', 'truncated', pickle.dumps([1, 2])])
def test_damaged_files(tmp_path, content):
    path = tmp_path / 'x.pth'
    if content == 'truncated':
        torch.save({'state_dict': {'w': torch.zeros(1000)}}, path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'x\.pth (is no readable checkpoint|holds)') as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r'none\.pth does not exist'):
        read_checkpoint(tmp_path / 'none.pth')


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.pth'
    AtomicBackend().put(b'good', str(path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the write fails half-way, as on a full disk
    try:
        with pytest.raises(UserError, match=r'x\.pth cannot be written .* last good checkpoint is kept'):
            AtomicBackend().put(bytes(5000), str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b'good'
    assert list(tmp_path.iterdir()) == [path]


def test_newest_by_time_then_by_number(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for name in ('epoch_9.pth', 'epoch_10.pth', 'best_top1_epoch_11.pth', 'epoch_12.pth.partial'):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000, 1000))
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_10.pth')
    (tmp_path / 'epoch_1.pth').touch()  # a run that started anew
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')


def test_numpy_1_wrote_its_values_under_another_name(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'score': np.float64(0.25), 'names': np.array([1, 2])}, path)
    with zipfile.ZipFile(path) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for info, content in files.items():
            archive.writestr(info, content.replace(b'cnumpy._core.multiarray', b'cnumpy.core.multiarray'))
    assert b'cnumpy.core.multiarray' in path.read_bytes()
    assert read_checkpoint(path)['score'] == 0.25
    assert read_checkpoint(path)['names'].tolist() == [1, 2]


def test_one_cycle_schedule_can_be_read_back(tmp_path):
    schedule = [dict(type='OneCycleLR', eta_max=0.1, by_epoch=False, total_steps=6)]
    train(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', param_scheduler=schedule))
    assert read_checkpoint(tmp_path / 'run/epoch_2.pth')['meta']['epoch'] == 2


def test_weights_come_back_and_strangers_are_named(tmp_path):
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_weights({f'module.{k}': v for k, v in model.state_dict().items()}, tmp_path / 'x.pth', {})
    load_weights(other, tmp_path / 'x.pth')
    assert torch.equal(model.weight, other.weight)
    with pytest.raises(UserError, match=r'weight is \(2, 3\), the model has \(2, 4\)'):
        load_weights(torch.nn.Linear(4, 2), tmp_path / 'x.pth')


def test_mmengine_reads_through_the_guard(tmp_path):
    schemes = dict(CheckpointLoader._schemes)
    path, marker = tmp_path / 'x.pth', tmp_path / 'executed'
    torch.save({'payload': Attack(marker)}, path)
    try:
        guard_checkpoints()
        with pytest.raises(UserError, match='refused'):
            _load_checkpoint(str(path))
    finally:
        CheckpointLoader._schemes = schemes
    assert not marker.exists()
