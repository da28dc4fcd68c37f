import pytest
import torch
from mmengine.runner import Runner
from tiny import classification_config, image_folder


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('data'))


def run(data, folder, stop=None, resume=None):
    cosine = dict(type='CosineAnnealingLR', T_max=3, by_epoch=True, convert_to_iter_based=True)
    config = classification_config(
        data,
        folder,
        epochs=3,
        param_scheduler=[cosine],
        custom_hooks=[dict(type='kd_plugins.StopHook', epoch=stop)] if stop else [],
        resume=resume is not None,
        load_from=resume and str(resume),
        experiment_name=f'{folder}{stop}',
    )
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_parts_of_a_training_are_those_of_the_whole_one(data, tmp_path):
    run(data, tmp_path / 'whole')
    parts = tmp_path / 'parts'
    assert run(data, parts, stop=1).epoch == 1
    assert not (parts / 'epoch_2.pth').exists()
    assert run(data, parts, stop=2, resume=parts / 'epoch_1.pth').epoch == 2
    assert run(data, parts, stop=2, resume=parts / 'epoch_2.pth').iter == 6  # nothing is left to train
    for epoch in (1, 2):
        whole, part = (torch.load(tmp_path / x / f'epoch_{epoch}.pth', weights_only=False) for x in ('whole', 'parts'))
        assert all(torch.equal(value, part['state_dict'][key]) for key, value in whole['state_dict'].items())
        assert whole['param_schedulers'] == part['param_schedulers']
