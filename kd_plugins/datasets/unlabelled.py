"""Images without labels: folders, lists, and other data sets without their annotations."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from mmengine import fileio
from mmpretrain.datasets.base_dataset import BaseDataset

from kd_plugins.data_files import is_image
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """Images without labels, for training with ``task='off'``.

    The arguments are those of mmpretrain's ``CustomDataset``, so that the ``type`` alone turns its config dict into
    one without labels::

        dict(type='kd_plugins.UnlabelledImages', data_root='data/photos', pipeline=...)
        dict(type='kd_plugins.UnlabelledImages', data_prefix=['data/photos', '/mnt/frames'], pipeline=...)
        dict(type='kd_plugins.UnlabelledImages', ann_file='data/list.txt', pipeline=...)
        dict(type='kd_plugins.UnlabelledImages', dataset=dict(type='mmdet.VOCDataset', ...), pipeline=...)

    Samples have ``img_path`` and no ``gt_label``. The images of folders come first, sorted by path within each, then
    those of the other data sets, in their order.

    In place of an unreadable image, which ``kd_plugins.LoadImage(skip_corrupt=True)`` or ``--skip-corrupt`` leaves
    out, comes the next one that can be read; which one depends on no random state.

    Args:
        data_root: Folder that relative paths in ``data_prefix`` and ``ann_file`` start from; where only it is given,
            the folder of the images.
        data_prefix: Folder, or a list of folders, with images at any depth. Hidden files and folders are left out.
        ann_file: List of images, one path in a line, absolute or relative to ``data_prefix`` below ``data_root``,
            or, without these, to the list's folder. One label behind the path, after a space or tab, is ignored.
        dataset: Config dict of another data set, or a list of them. Their annotations and pipelines are not used.
            A set that holds pixels (CIFAR) gives ``img`` instead of ``img_path``; its pipeline loads no image.
        **kwargs: mmengine's ``pipeline``, ``indices``, ``test_mode``, ``serialize_data`` and ``lazy_init``.

    Raises:
        UserError: A folder or list is missing or has no image, no argument names any images, or a data set has none.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | PathLike[str] | Sequence[str] | Mapping[str, str] = '',
        ann_file: str = '',
        dataset: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        if not (data_root or data_prefix or ann_file or dataset):
            raise UserError(
                'UnlabelledImages: no images are named: give a folder as data_root or data_prefix, a list as '
                'ann_file, or the config dict of another data set as dataset'
            )
        if isinstance(data_prefix, PathLike):
            data_prefix = fspath(data_prefix)
        if not isinstance(data_prefix, (str, Mapping)):
            # mmengine joins the values of a dict with data_root.
            data_prefix = {f'img_path{i or ""}': folder for i, folder in enumerate(data_prefix)}
        if ann_file and isinstance(data_prefix, Mapping) and len(data_prefix) > 1:
            raise UserError(
                f'UnlabelledImages: the paths in {ann_file} can start from one folder, not from '
                f'{len(data_prefix)}: give one data_prefix, or absolute paths in the list and none'
            )
        self._sources = [dataset] if isinstance(dataset, Mapping) else list(dataset)
        self._has_folders = bool(data_root or data_prefix)
        super().__init__(ann_file, data_root=data_root, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per image, with its ``img_path`` (or ``img``)."""
        infos: list[dict[str, Any]] = []
        if self.ann_file:
            infos += [dict(img_path=path) for path in self._listed()]
        elif self._has_folders:
            infos += [dict(img_path=path) for folder in self.data_prefix.values() for path in _below(folder)]
        for source in self._sources:
            infos += _without_annotations(source)
        if len({tuple(info) for info in infos}) > 1:
            raise UserError(
                'UnlabelledImages: some of the data sets hold pixels and others name files, which one pipeline cannot '
                "load: make each an UnlabelledImages with its own pipeline, in a dict(type='ConcatDataset', "
                'datasets=[...])'
            )
        return infos

    def _listed(self) -> Iterator[str]:
        try:
            text = fileio.get_text(self.ann_file)
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f'{self.ann_file}: no such list of images; check data_root and ann_file') from None
        except UnicodeDecodeError:
            raise UserError(f'{self.ann_file}: expected a text with the path of an image in each line') from None
        folder = self.img_prefix if self._has_folders else self.ann_file.rpartition('/')[0]
        lines = [line.strip() for line in text.removeprefix('\ufeff').splitlines() if line.strip()]
        if not lines:
            raise UserError(f'{self.ann_file}: the list is empty; expected the path of an image in each line')
        for line in lines:
            path, *label = line.rsplit(maxsplit=1)
            yield fileio.join_path(folder, path if is_image(path) and not any(map(is_image, label)) else line)

    def __getitem__(self, idx: int) -> Any:
        """Return a sample, or the next one whose image can be read.

        Raises:
            UserError: No image can be read.
        """
        if self.test_mode:
            return super().__getitem__(idx)
        if not -len(self) <= idx < len(self):
            raise IndexError(idx)  # ends a loop over the data set
        for step in range(len(self)):
            sample = self.prepare_data((idx + step) % len(self))
            if sample is not None:
                return sample
        raise UserError(f'UnlabelledImages: none of the {len(self)} images can be read: see the warnings above')

    @property
    def img_prefix(self) -> str:
        """The first folder."""
        return next(iter(self.data_prefix.values()))


def _below(folder: str) -> list[str]:
    """Return the images below a folder, sorted."""
    if not fileio.isdir(folder):
        raise UserError(f'{folder}: no such folder of images; check data_root and data_prefix')
    names = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
    paths = [fileio.join_path(folder, name) for name in sorted(names) if is_image(name) and '/.' not in f'/{name}']
    if not paths:
        raise UserError(
            f'{folder}: no image in this folder nor in any below it; expected files as .jpg, .png, .webp or .tif'
        )
    return paths


def _without_annotations(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where the images of a data set lie, or their pixels."""
    source = DATASETS.build(dict(config) | (dict(pipeline=[]) if 'pipeline' in config else {}))
    name = type(source).__name__
    if not hasattr(source, 'get_data_info'):
        raise UserError(
            f'UnlabelledImages: {name} cannot name its images (it has no get_data_info): expected a data set of '
            "mmengine's kind, or give its folder as data_prefix"
        )
    infos = [source.get_data_info(i) for i in range(len(source))]
    if not infos:
        raise UserError(f'UnlabelledImages: {name} holds no image: check its paths and its filter_cfg')
    key = next((key for key in ('img_path', 'img') if key in infos[0]), None)
    if key is None:
        raise UserError(
            f'UnlabelledImages: the samples of {name} have no img_path and no img, only '
            f'{", ".join(infos[0])}: give its folder as data_prefix'
        )
    return [{key: info[key]} for info in infos]
