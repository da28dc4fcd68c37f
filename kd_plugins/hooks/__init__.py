from kd_plugins.hooks.accumulation_hook import AccumulationHook
from kd_plugins.hooks.channels_last_hook import ChannelsLastHook
from kd_plugins.hooks.check_hook import CheckHook
from kd_plugins.hooks.corruption_hook import CorruptionHook
from kd_plugins.hooks.distillation_hook import DistillationHook
from kd_plugins.hooks.export_hook import ExportHook
from kd_plugins.hooks.freeze_hook import FreezeHook
from kd_plugins.hooks.held_out_hook import HeldOutHook
from kd_plugins.hooks.integrity_hook import IntegrityHook
from kd_plugins.hooks.knn_hook import KNNHook
from kd_plugins.hooks.label_map_hook import LabelMapHook
from kd_plugins.hooks.pretrained_check_hook import PretrainedCheckHook
from kd_plugins.hooks.reseed_hook import ReseedHook
from kd_plugins.hooks.stop_hook import StopHook
from kd_plugins.hooks.summary_hook import SummaryHook
from kd_plugins.hooks.watch_hook import WatchHook

__all__ = [
    'AccumulationHook',
    'ChannelsLastHook',
    'CheckHook',
    'CorruptionHook',
    'DistillationHook',
    'ExportHook',
    'FreezeHook',
    'HeldOutHook',
    'IntegrityHook',
    'KNNHook',
    'LabelMapHook',
    'PretrainedCheckHook',
    'ReseedHook',
    'StopHook',
    'SummaryHook',
    'WatchHook',
]
