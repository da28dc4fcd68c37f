"""An archive unpacks into its folder, or not at all."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from kd_plugins.data_files import unpack
from kd_plugins.errors import UserError


def tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, 'w:gz') as file:
        for member in members:
            file.addfile(member, io.BytesIO(b'hello'))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = '') -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 5 * (kind == tarfile.REGTYPE)
    return info


@pytest.fixture(params=['filter', 'no filter'])
def python(request, monkeypatch) -> None:
    """Also as a Python that is too old for tarfile's filters."""
    if request.param == 'no filter':
        monkeypatch.delattr(tarfile, 'data_filter', raising=False)


@pytest.mark.parametrize(
    'members',
    [
        [member('../out.txt')],
        [member('data/../../out.txt')],
        [member('link', tarfile.SYMTYPE, '..'), member('link/out.txt')],
        [member('link', tarfile.SYMTYPE, '/etc')],
        [member('link', tarfile.LNKTYPE, '../secret.txt')],
        [member('data/fifo', tarfile.FIFOTYPE)],
    ],
)
def test_a_tar_file_that_leads_out_is_refused(tmp_path: Path, members: list[tarfile.TarInfo], python: None) -> None:
    (tmp_path / 'secret.txt').write_text('secret')
    archive = tar(tmp_path / 'data.tar.gz', *members)
    with pytest.raises(UserError, match=r'data\.tar\.gz cannot be unpacked \(.*\): fetch it again') as error:
        unpack(archive, tmp_path / 'root')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'out.txt').exists()
    assert (tmp_path / 'secret.txt').stat().st_nlink == 1


@pytest.mark.parametrize('name', ['../out.txt', 'data/../../out.txt', '/out.txt'])
def test_a_zip_file_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as file:
        file.writestr('data/in.txt', 'hello')
        file.writestr(name, 'hello')
    with pytest.raises(UserError, match=f"data.zip names '{name}', which lies outside the data"):
        unpack(tmp_path / 'data.zip', tmp_path / 'root')
    assert not (tmp_path / 'root').exists()


def test_a_sound_archive_is_unpacked_and_a_damaged_one_reported(tmp_path: Path, python: None) -> None:
    archive = tar(tmp_path / 'data.tgz', member('data', tarfile.DIRTYPE), member('data/in.txt'))
    unpack(archive, tmp_path / 'root')
    assert (tmp_path / 'root' / 'data' / 'in.txt').read_text() == 'hello'
    for damaged in (b'no archive', archive.read_bytes()[:-30]):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match='cannot be unpacked'):
            unpack(archive, tmp_path / 'root')
