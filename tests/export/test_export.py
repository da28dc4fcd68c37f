"""Exported files compute what torch does, say what they take, and score the same."""

import json
from argparse import Namespace

import onnx
import pytest
import torch
from tiny import CLASSES, classification_config, classifier, image_folder

from kd_plugins.checkpoint import save_weights
from kd_plugins.export.files import Runtime
from kd_plugins.export.run import export
from kd_plugins.registry import MODELS

OPTIONS = dict(
    backbone=False, normalize=False, size=None, work_dir=None, cfg_options=None, allow_pickle=False, launcher='none',
    skip_corrupt=False, amp=False,
)  # fmt: skip
TEST = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


def saved(model, path, **meta):
    """Save a network of random weights and random statistics, and return it."""
    torch.manual_seed(0)
    network = MODELS.build(model)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_weights(network.state_dict(), path, meta)
    return network.eval()


def with_test_set(config, pipeline=TEST):
    """Add a test set to a config: its training images, as they are."""
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['dataset'] = dict(loader['dataset'], pipeline=pipeline)
    config.merge_from_dict(dict(test_dataloader=loader, test_cfg={}, test_evaluator=[dict(type='Accuracy')]))
    return config


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Export as the command line does; return the file's runtime and the card."""
    monkeypatch.chdir(tmp_path)

    def run(to='student.onnx', config='config.py', checkpoint='student.pth', **options):
        export(Namespace(**OPTIONS | options, config=config, checkpoint=checkpoint, to=tmp_path / to))
        return Runtime(tmp_path / to), json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize('to', ['student.onnx', 'student.pt2'])
def test_a_classifier_computes_what_torch_does_and_says_what_it_takes(run, tmp_path, to):
    model = classifier()
    with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', model)).dump(
        tmp_path / 'config.py'
    )
    network = saved(model, tmp_path / 'student.pth', dataset_meta=dict(classes=['a', 'b', 'c', 'd']))
    runtime, card = run(to)
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(runtime(images)[0], network(images), atol=1e-5, rtol=1e-5)
    assert card['difference'] < 1e-5
    assert card['output'] == 'logits'
    assert card['student']['parameters'] == sum(x.numel() for x in network.parameters())
    about = runtime.metadata
    assert json.loads(about['classes']) == ['a', 'b', 'c', 'd']
    assert (json.loads(about['mean']), json.loads(about['std'])) == ([120.0] * 3, [60.0] * 3)
    assert (about['height'], about['width'], about['channel_order']) == ('16', '16', 'BGR')
    assert (about['config'], about['checkpoint']) == ('config.py', 'student.pth')
    if to == 'student.onnx':
        graph = onnx.load(tmp_path / to).graph
        sizes = [x.dim_param or x.dim_value for x in graph.input[0].type.tensor_type.shape.dim]
        assert sizes == ['batch', 3, 16, 16]
        assert [x.dim_param or x.dim_value for x in graph.output[0].type.tensor_type.shape.dim] == ['batch', CLASSES]
