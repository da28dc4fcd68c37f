"""Files of data sets: images by their endings, downloads, and archives and lists that stay inside their folder."""

import os
import tarfile
import zipfile
import zlib
from pathlib import Path

from kd_plugins.errors import UserError

# What OpenCV and Pillow both read.
_USUAL = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.jp2', '.avif')
_IMAGE_ENDINGS = (*_USUAL, '.ppm', '.pgm', '.pbm', '.pnm')


def is_image(name: str | Path) -> bool:
    """Whether a file has one of the usual endings of images, in any case."""
    return str(name).lower().endswith(_IMAGE_ENDINGS)


def fetch(url: str, folder: str | Path, md5: str, name: str | None = None) -> None:
    """Download an archive into a folder, unless it exists there, and unpack it there.

    Args:
        url: Address of the archive.
        folder: Folder of the archive and its files; made where it is missing.
        md5: Checksum of the archive.
        name: File name of the archive; by default the end of the address.

    Raises:
        OSError: The download failed.
        RuntimeError: The downloaded file has another checksum.
        UserError: As :func:`unpack`.
    """
    from torchvision.datasets.utils import download_url  # only here: importing it takes seconds

    download_url(url, str(folder), name, md5)
    unpack(Path(folder, name or os.path.basename(url)), folder)


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack a tar file, compressed or not, or a zip file.

    Raises:
        UserError: A member, or the target of a link, lies outside the folder; or the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    inside(name, archive)
                file.extractall(folder)
            return
        with tarfile.open(archive) as file:
            if hasattr(tarfile, 'data_filter'):
                file.extractall(folder, filter='data')
            else:  # before Python 3.10.12 and 3.11.4, as in Debian 12; links, which no data set here has, are refused
                for member in file.getmembers():
                    if _leads_out(member.name) or not (member.isfile() or member.isdir()):
                        raise tarfile.ExtractError(f'{member.name!r} leads out of the folder or is no plain file')
                file.extractall(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f'{archive} cannot be unpacked ({error}): fetch it again, from its official source') from error


def inside(name: str, source: str | Path) -> str:
    """Return a name that was read from a file, unless it leads out of its folder.

    Raises:
        UserError: The name is absolute or goes up.
    """
    if _leads_out(name):
        raise UserError(f"{source} names '{name}', which lies outside the data: correct that file, or fetch it again")
    return name


def _leads_out(name: str) -> bool:
    return os.path.isabs(name) or '..' in Path(name).parts
