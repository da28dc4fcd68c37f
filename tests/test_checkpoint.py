import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.fileio.backends import backends, prefix_to_backends
from mmengine.fileio.handlers import file_handlers
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint
from mmengine.structures import InstanceData
from scipy import interpolate
from tiny import classification_config, equal, image_folder, train

from kd_plugins import checkpoint, unpickling
from kd_plugins.checkpoint import (
    download,
    guard_checkpoints,
    load_loosely,
    load_weights,
    read_checkpoint,
    read_weights,
    save_weights,
)
from kd_plugins.compat import provide_interp2d
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS
from kd_plugins.unpickling import guard_files


class Attack:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_reads_what_a_run_saves(tmp_path):
    runner = train(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    saved = read_checkpoint(tmp_path / 'run' / 'epoch_2.pth')
    assert saved['meta']['epoch'] == 2
    assert isinstance(saved['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    assert torch.equal(saved['state_dict']['head.fc.weight'], runner.model.head.fc.weight)


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
    with pytest.raises(UserError, match=r'x\.pth (is not a readable checkpoint|holds)') as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_that_is_cut_or_changed_anywhere_is_one_line(tmp_path, zipped):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {f'layer{i}.weight': torch.zeros(2) for i in range(9)}}, path, pickle, 2, zipped)
    whole, messages = path.read_bytes(), []
    random = np.random.default_rng(0)
    for at in range(0, len(whole), 29):
        for content in (whole[:at], whole[:at] + bytes([*random.integers(0, 256, 1)]) + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                read_checkpoint(path)
            except UserError as error:
                messages.append(str(error))
    assert len(messages) > len(whole) / 29  # of all that are cut, and some of the others
    if zipped:
        at = whole.index(b'PK\1\2') + 8  # the flags of an entry, of which 1 says that it is encrypted
        path.write_bytes(whole[:at] + b'\1' + whole[at + 1 :])
        with pytest.raises(UserError, match='encrypted'):
            read_checkpoint(path)
    assert all(x.startswith(str(path)) and '\n' not in x for x in messages)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r'none\.pth does not exist'):
        read_checkpoint(tmp_path / 'none.pth')


@pytest.fixture
def logged(monkeypatch):
    """A list that gets what is logged."""
    lines = []
    monkeypatch.setattr(checkpoint, 'print_log', lambda line, *_: lines.append(line))
    return lines


def test_changed_bytes_are_noticed_and_older_formats_read(tmp_path):
    path, weights = tmp_path / 'x.pth', {'w': torch.arange(100.0)}
    torch.save({'state_dict': weights}, path)
    whole = path.read_bytes()
    at = whole.index(weights['w'].numpy().tobytes()) + 200
    path.write_bytes(whole[:at] + b'\1\2' + whole[at + 2 :])
    assert not torch.equal(torch.load(path)['state_dict']['w'], weights['w'])
    with pytest.raises(UserError, match=r"truncated or damaged.*Bad CRC-32 for file 'x/data/0'"):
        read_checkpoint(path)
    torch.save({'state_dict': weights}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path)['state_dict']['w'], weights['w'])
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'state_dict': weights}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(path)['state_dict']['w'], weights['w'])


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


class Scaled(torch.nn.Linear):
    """Older versions kept twice the weight."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get('version', 1) < 2:
            state_dict[f'{prefix}weight'] = state_dict[f'{prefix}weight'] / 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_versions_are_kept_and_asked_for(tmp_path):
    model, other = torch.nn.Sequential(Scaled(3, 2)), torch.nn.Sequential(Scaled(3, 2))
    save_weights(model.state_dict(), tmp_path / 'new.pth', {})
    load_weights(other, tmp_path / 'new.pth')
    assert torch.equal(other[0].weight, model[0].weight)
    load_loosely(other[0], read_weights(tmp_path / 'new.pth', '0'))
    assert torch.equal(other[0].weight, model[0].weight)
    torch.save(dict(model.state_dict()), tmp_path / 'old.pth')
    load_weights(other, tmp_path / 'old.pth')
    assert torch.equal(other[0].weight, model[0].weight / 2)


@pytest.mark.parametrize(
    'content', [[1, 2], dict(state_dict=None), dict(state_dict={}), dict(epoch=3), dict(net=dict(w=torch.ones(1)))]
)
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth holds .*weights: expected a dictionary of tensors'):
        load_weights(torch.nn.Linear(1, 1), tmp_path / 'x.pth')


def test_weights_come_back_and_strangers_are_named(tmp_path):
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_weights({f'module.{k}': v for k, v in model.state_dict().items()}, tmp_path / 'x.pth', {})
    load_weights(other, tmp_path / 'x.pth')
    assert torch.equal(model.weight, other.weight)
    with pytest.raises(UserError, match=r'size mismatch for weight: .*\[2, 3\].*\[2, 4\]'):
        load_weights(torch.nn.Linear(4, 2), tmp_path / 'x.pth')


def test_a_layer_under_a_second_name_loads_into_a_network_that_does_not_have_it_yet(tmp_path, logged):
    """A training step of mmdet's DDQ gives its decoder layers of the head, and so their names to the checkpoint."""
    networks = [torch.nn.ModuleDict(dict(head=torch.nn.ModuleDict(dict(x=torch.nn.Linear(3, 2))))) for _ in range(2)]
    networks[0]['decoder'] = torch.nn.ModuleDict(dict(x=networks[0]['head'].x))
    save_weights(networks[0].state_dict(), tmp_path / 'x.pth', {})
    load_weights(networks[1], tmp_path / 'x.pth')
    assert torch.equal(networks[1]['head'].x.weight, networks[0]['head'].x.weight)
    assert logged == ['left out of the checkpoint, since no layer needs it: decoder.x.weight, decoder.x.bias']
    networks[0]['decoder'] = torch.nn.ModuleDict(dict(x=torch.nn.Linear(3, 2)))
    save_weights(networks[0].state_dict(), tmp_path / 'x.pth', {})
    with pytest.raises(UserError, match=r'does not fit .*: decoder\.x\.weight is left over'):
        load_weights(networks[1], tmp_path / 'x.pth')


def test_a_left_over_value_that_is_no_tensor_is_named(tmp_path):
    network = torch.nn.Linear(3, 2)
    torch.save({**network.state_dict(), 'epoch': 3}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth does not fit Linear: epoch is left over'):
        load_weights(network, tmp_path / 'x.pth')


@pytest.fixture
def process(monkeypatch):
    """Guards stay in this test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(unpickling, '_allowed', False)
    for registered in (file_handlers, backends, prefix_to_backends):
        for key, value in registered.items():
            monkeypatch.setitem(registered, key, value)


def test_a_backbone_takes_its_part_of_a_whole_networks_file(tmp_path):
    backbone = dict(type='mmpretrain.ResNet', depth=18, base_channels=4, stem_channels=4)
    whole = dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=dict(type='LinearClsHead', in_channels=32))
    given = MODELS.build(dict(whole, head=dict(whole['head'], num_classes=3), neck=dict(type='GlobalAveragePooling')))
    torch.save(dict(state_dict=given.state_dict()), tmp_path / 'whole.pth')
    bare, headless = MODELS.build(backbone), MODELS.build(dict(whole, head=None))
    for model, found in ((bare, bare), (headless, headless.backbone)):
        load_weights(model, tmp_path / 'whole.pth')
        assert equal(found.state_dict(), given.backbone.state_dict())
    with pytest.raises(UserError, match=r'head\.fc\.weight'):
        load_weights(MODELS.build(dict(whole, head=dict(whole['head'], num_classes=4))), tmp_path / 'whole.pth')
    with pytest.raises(UserError, match=r'conv1\.weight'):
        load_weights(MODELS.build(dict(backbone, stem_channels=8)), tmp_path / 'whole.pth')


@pytest.mark.parametrize(
    ('name', 'file'),
    [
        ('{folder}/x.pth', '{folder}/x.pth'),
        ('torchvision://resnet18', '{hub}/resnet18-f37072fd.pth'),
        ('modelzoo://resnet18', '{hub}/resnet18-f37072fd.pth'),
        ('open-mmlab://contrib/resnet50_gn', '{hub}/resnet50_gn_thangvubk-ad1730dd.pth'),
        ('openmmlab://contrib/resnet50_gn', '{hub}/resnet50_gn_thangvubk-ad1730dd.pth'),
        ('mmcls://vgg11', '{hub}/vgg11_batch256_imagenet_20210208-4271cd6c.pth'),
        ('https://example.org/x-0123abcd.pth', '{hub}/x-0123abcd.pth'),
    ],
)
def test_mmengine_reads_through_the_guard(tmp_path, monkeypatch, process, name, file):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    path = Path(file.format(folder=tmp_path, hub=tmp_path / 'hub/checkpoints'))
    path.parent.mkdir(parents=True, exist_ok=True)
    name, marker = name.format(folder=tmp_path), tmp_path / 'executed'
    torch.save({'state_dict': {'backbone.x': torch.ones(1)}, 'payload': Attack(marker)}, path)
    guard_checkpoints()
    for read in (_load_checkpoint, read_checkpoint, read_weights):
        with pytest.raises(UserError, match='refused'):
            read(name)
    assert not marker.exists()
    guard_checkpoints(allow_pickle=True)
    (key,) = _load_checkpoint(name)['state_dict']
    assert key == ('x' if name.startswith('mmcls') else 'backbone.x')
    assert marker.exists()
    marker.rmdir()
    guard_files()  # of another config in this process: what is allowed stays so
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(Attack(marker)))
    mmengine.load(tmp_path / 'x.pkl')
    assert marker.exists()


def test_tables_that_a_network_drops_when_it_loads_are_not_missing(tmp_path):
    swin = dict(
        type='SwinTransformerV2',
        arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1] * 4, extra_norm_every_n_blocks=0),
    )
    config = dict(type='ImageClassifier', _scope_='mmpretrain', backbone=dict(swin, img_size=64, window_size=4))
    network, other = MODELS.build(config), MODELS.build(config)
    torch.save(network.state_dict(), tmp_path / 'swin.pth')
    load_weights(other, tmp_path / 'swin.pth')
    assert equal(network.state_dict(), other.state_dict())
    weights = network.state_dict()
    del weights['backbone.stages.0.blocks.0.attn.w_msa.logit_scale']
    torch.save(weights, tmp_path / 'swin.pth')
    with pytest.raises(UserError, match='logit_scale is missing'):
        load_weights(other, tmp_path / 'swin.pth')


def test_a_damaged_download_is_not_kept_under_the_name_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    content = b'weights'
    file = tmp_path / f'net-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r'cannot be downloaded .*invalid hash'):
        download(file.as_uri(), check_hash=True)
    assert not list(tmp_path.glob('hub/checkpoints/*.pth'))
    file.write_bytes(content)
    assert Path(download(file.as_uri(), check_hash=True)).read_bytes() == content


def test_a_download_that_was_cut_off_is_to_be_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    torch.save(dict(x=torch.ones(1000)), tmp_path / 'net-01234567.pth')
    whole = (tmp_path / 'net-01234567.pth').read_bytes()
    kept = tmp_path / 'hub/checkpoints/net-01234567.pth'
    kept.parent.mkdir(parents=True)
    kept.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r'truncated or damaged\): remove it, and it is downloaded again'):
        read_checkpoint('https://example.org/net-01234567.pth')


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'x.pt')
    with pytest.raises(UserError, match=r'x\.pt is a TorchScript program, not weights: save the state_dict'):
        read_checkpoint(tmp_path / 'x.pt')


def test_a_folder_for_downloads_that_cannot_be_made_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', '/proc/none')
    with pytest.raises(UserError, match=r'net-01234567\.pth cannot be downloaded'):
        download('https://example.org/net-01234567.pth')


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r'is a folder: give the path of a \.pth'):
        read_checkpoint(tmp_path)
    torch.save({0: torch.ones(3)}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match='holds no weights'):
        read_weights(tmp_path / 'x.pth')


def test_no_prefix_of_mmengine_passes_the_guard_by(process):
    guard_checkpoints()
    assert {loader.__module__ for loader in CheckpointLoader._schemes.values()} == {'kd_plugins.checkpoint'}
    for name in ('s3://bucket/x.pth', 'cluster:s3://bucket/x.pth', 'petrel://x.pth', 'pavi://x.pth', 'local://x.pth'):
        with pytest.raises(UserError, match='fetch the file and give its path'):
            _load_checkpoint(name)
    with pytest.raises(UserError, match=r"mmengine knows no 'resnet19' under torchvision://; nearest .*resnet18"):
        _load_checkpoint('torchvision://resnet19')


def test_files_that_a_config_names_run_no_code(tmp_path, process):
    """By mmengine's own reader, which stock data sets take."""
    marker = tmp_path / 'executed'
    plain = {
        'metainfo': {'classes': ('a', 'b')},
        'data_list': [{'x': np.arange(3.0), 'y': np.float64(2), 'proposals': InstanceData(bboxes=np.ones((1, 4)))}],
    }
    mmengine.dump(plain, tmp_path / 'plain.pkl')
    mmengine.dump(Attack(marker), tmp_path / 'bad.pkl')
    (tmp_path / 'plain.yaml').write_text('x: [1, {y: 2.5}]')
    (tmp_path / 'bad.yml').write_text(f'!!python/object/apply:os.mkdir [{marker}]')
    guard_checkpoints()
    read = mmengine.load(tmp_path / 'plain.pkl')
    assert read['metainfo'] == plain['metainfo']
    (sample,) = read['data_list']
    assert sample['x'].tolist() == [0, 1, 2]
    assert sample['y'] == 2
    assert sample['proposals'].bboxes.shape == (1, 4)
    assert mmengine.load(tmp_path / 'plain.yaml') == {'x': [1, {'y': 2.5}]}
    for name in ('bad.pkl', 'bad.yml'):
        with pytest.raises(UserError, match=r'file that the config names .* holds code, which is refused .*mkdir'):
            mmengine.load(tmp_path / name)
    assert not marker.exists()
    guard_checkpoints(allow_pickle=True)
    mmengine.load(tmp_path / 'bad.pkl')
    assert marker.exists()


def test_position_tables_are_interpolated_as_by_scipys_old_interp2d():
    """A cubic spline passes through a cubic polynomial; rows of z are those of y."""

    def polynomial(x, y):
        return x**3 - 2 * x * y**2 + y

    provide_interp2d()
    x, y, wanted = np.array([-3.0, -1.2, 0, 1, 2.5]), np.array([-2.0, -1, 0, 1]), np.array([-1.5, 0.25, 0.75])
    found = interpolate.interp2d(x, y, polynomial(x[None], y[:, None]), kind='cubic')(wanted, wanted[:2])
    np.testing.assert_allclose(found, polynomial(wanted[None], wanted[:2, None]), atol=1e-12)


SWIN = dict(
    type='mmpretrain.SwinTransformer',
    arch=dict(embed_dims=8, depths=[2, 1], num_heads=[1, 2]),
    img_size=32,
    patch_size=4,
    window_size=4,
    out_indices=(1,),
    use_abs_pos_embed=True,
)


def test_an_official_file_loads_as_the_stock_loader_loads_it(tmp_path, logged):
    """Renamed norms, masks, a position table of another size; what older versions saved beside is left out."""
    old = MODELS.build(SWIN | dict(img_size=48, window_size=6))
    weights = {
        f'backbone.{key.replace("norm1.", "norm.") if key.startswith("norm1.") else key}': value
        for key, value in old.state_dict().items()
    }
    assert 'backbone.norm.weight' in weights
    weights |= {
        'backbone.stages.0.blocks.1.attn.attn_mask': torch.zeros(4),
        'data_preprocessor.mean': torch.ones(3),
        'ema_backbone_norm1_weight': torch.ones(16),
    }
    torch.save({'state_dict': weights}, tmp_path / 'x.pth')
    classifier = dict(
        type='mmpretrain.ImageClassifier', backbone=SWIN, data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3)
    )
    stock, own = MODELS.build(classifier), MODELS.build(classifier)
    load_weights(own, tmp_path / 'x.pth')
    load_checkpoint(stock, str(tmp_path / 'x.pth'))
    assert equal(stock.state_dict(), own.state_dict())
    assert torch.equal(own.backbone.norm1.weight, old.norm1.weight)
    resized = [key for key, value in own.backbone.state_dict().items() if value.shape != old.state_dict()[key].shape]
    assert {key.rpartition('.')[2] for key in resized} == {
        'absolute_pos_embed',
        'relative_position_bias_table',
        'relative_position_index',
    }
    assert logged == [
        'left out of the checkpoint, since no layer needs it: ema_backbone_norm1_weight, data_preprocessor.mean'
    ]
