"""PASCAL VOC with mistakes in the data reported in one line. Importing this module imports mmdet."""

import os
from xml.etree import ElementTree

from mmdet.datasets import VOCDataset as _VOCDataset
from mmengine import fileio

from kd_plugins.data_files import inside, is_image
from kd_plugins.errors import UserError

_SLACK = 1  # pixels; tools that count from 0 write boxes one pixel further left


class VOCDataset(_VOCDataset):
    """mmdet's ``VOCDataset`` for the 20 classes or for others (``metainfo=dict(classes=…)``) in the same layout.

    As in mmdet, objects of a VOC class that ``classes`` leaves out are skipped. Images may have any usual ending;
    ``.jpg`` comes first.

    Args:
        **kwargs: As in :class:`mmdet.datasets.VOCDataset`.

    Raises:
        UserError: The data root, the split file, an annotation or an image is missing; the split file names a file
            outside the folder; an annotation is not XML, lacks a field, names an unknown class, or holds a box that is
            empty or reaches out of the image.
    """

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if tuple(self.metainfo['classes']) != self.METAINFO['classes']:
            self._metainfo['dataset_type'] = None  # else VOCMetric prints the 20 names beside the wrong figures

    def load_data_list(self) -> list[dict]:
        """Read the split file and every annotation it lists."""
        if self.data_root and not fileio.exists(self.data_root, backend_args=self.backend_args):
            raise UserError(f'{self.data_root}: VOC data root is missing; put VOCdevkit there or set data_root')
        if not fileio.exists(self.ann_file, backend_args=self.backend_args):
            raise UserError(
                f'{self.ann_file}: split file is missing; expected VOC2007/ImageSets/Main/<split>.txt under data_root'
            )
        folder = fileio.join_path(self.sub_data_root, self.img_subdir)
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise UserError(f'{folder}: folder of the images is missing; put it there or set data_prefix')
        files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True, backend_args=self.backend_args)
        images = sorted(filter(is_image, files), key=lambda file: file.endswith('.jpg'))
        self._images = {os.path.splitext(file)[0]: file for file in images}
        data_list = [info for info in super().load_data_list() if info is not None]
        if not data_list:
            raise UserError(f'{self.ann_file}: split file lists no image; expected one name a line')
        return data_list

    def parse_data_info(self, img_info: dict) -> dict | None:
        """Read one annotation into ``img_path``, ``height``, ``width`` and ``instances``; None for a blank line."""
        name = inside(img_info['img_id'].strip(), self.ann_file)
        if not name:
            return None
        path = fileio.join_path(self.sub_data_root, self.ann_subdir, f'{name}.xml')
        img_info |= dict(img_id=name, xml_path=path)
        if name not in self._images:
            raise UserError(
                f'{fileio.join_path(self.sub_data_root, self.img_subdir, name)}: no such image, with any '
                f'ending, though {self.ann_file} lists it'
            )
        img_info['file_name'] = fileio.join_path(self.img_subdir, self._images[name])
        try:
            info = super().parse_data_info(img_info)
        except FileNotFoundError as error:
            raise UserError(f'{error.filename}: missing, though {self.ann_file} lists it') from None
        except ElementTree.ParseError as error:
            raise UserError(f'{path}: not XML ({error}); restore the annotation') from None
        except UserError as error:
            raise UserError(f'{path}: {error}') from None
        except (AttributeError, OverflowError, TypeError, ValueError):
            raise UserError(
                f'{path}: not a VOC annotation; expected size and, in each object, name and bndbox with '
                'xmin, ymin, xmax, ymax as numbers'
            ) from None
        width, height = info['width'], info['height']
        for x1, y1, x2, y2 in (instance['bbox'] for instance in info['instances']):
            if x1 >= x2 or y1 >= y2 or min(x1, y1) < -_SLACK or x2 >= width + _SLACK or y2 >= height + _SLACK:
                raise UserError(
                    f'{path}: box xmin={x1 + 1} ymin={y1 + 1} xmax={x2 + 1} ymax={y2 + 1} is empty or '
                    f'outside the {width}x{height} image; correct the annotation'
                )
        return info

    def _parse_instance_info(self, raw_ann_info: ElementTree.ElementTree, minus_one: bool = True) -> list[dict]:
        known = {*self.metainfo['classes'], *self.METAINFO['classes']}
        for name in raw_ann_info.iterfind('object/name'):
            if name.text not in known:
                raise UserError(
                    f"unknown class '{name.text}', expected one of {', '.join(self.metainfo['classes'])}; "
                    'correct it or set metainfo=dict(classes=...)'
                )
        return super()._parse_instance_info(raw_ann_info, minus_one)
