import multiprocessing
import os
import resource
from pathlib import Path

import pytest

from kd_plugins.errors import UserError
from kd_plugins.utils.files import AtomicBackend, check_writable, write_text, written_whole


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.pth'
    AtomicBackend().put(b'good', str(path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the write fails half-way, as on a full disk
    try:
        with pytest.raises(UserError, match=r'x\.pth cannot be written .* earlier files are kept; make room'):
            AtomicBackend().put(bytes(5000), str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b'good'
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_a_file_is_told_before_and_after_the_work(tmp_path):
    with pytest.raises(UserError, match=r'cannot be written \(Is a directory\): .* name a file in a folder of yours$'):
        write_text(tmp_path, 'x')
    (tmp_path / 'x.txt').write_text('x')
    for path, reason in ((tmp_path, 'Is a directory'), (tmp_path / 'x.txt/y.txt', 'File exists')):
        with pytest.raises(UserError, match=rf'^--out {path} cannot be written \({reason}\): name a file in a folder'):
            check_writable('--out', path)
    check_writable('--out', tmp_path / 'new/y.txt')
    assert {path.name for path in tmp_path.rglob('*')} == {'new', 'x.txt'}


def test_two_processes_write_one_file(tmp_path):
    path = tmp_path / 'x.txt'
    with written_whole(path) as partial:
        Path(partial).write_text('mine')
        context = multiprocessing.get_context('spawn')
        other = context.Process(target=write_text, args=(path, 'theirs'))
        other.start()
        other.join()
        assert path.read_text() == 'theirs'
    assert path.read_text() == 'mine'
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    (tmp_path / 'large').mkdir()
    (tmp_path / 'x.txt').symlink_to(tmp_path / 'large/x.txt')
    write_text(tmp_path / 'x.txt', 'new')
    assert (tmp_path / 'x.txt').is_symlink()
    assert (tmp_path / 'large/x.txt').read_text() == 'new'


def test_files_are_removed_after_the_next_write(tmp_path):
    """With max_keep_ckpts=1 mmengine removes the only checkpoint before it writes the next one."""
    old, new = str(tmp_path / 'old.pth'), str(tmp_path / 'new.pth')
    AtomicBackend().put(b'old', old)
    AtomicBackend().remove(old)
    assert os.path.isfile(old)
    AtomicBackend().put(b'new', new)
    assert [path.name for path in tmp_path.iterdir()] == ['new.pth']
    AtomicBackend().remove(new)
    AtomicBackend().put(b'again', new)
    assert Path(new).read_bytes() == b'again'


def test_text_does_not_remove_what_waits_for_the_next_checkpoint(tmp_path):
    old = str(tmp_path / 'old.pth')
    AtomicBackend().put(b'old', old)
    AtomicBackend().remove(old)
    write_text(tmp_path / 'folder/result.json', '{"name": "é"}')
    assert (tmp_path / 'folder/result.json').read_bytes() == '{"name": "é"}'.encode()
    assert os.path.isfile(old)
    AtomicBackend().put(b'new', str(tmp_path / 'new.pth'))
    assert not os.path.isfile(old)
