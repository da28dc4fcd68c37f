"""The metric in real test loops."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from tiny import market_folder, reid_config, train

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, ReIDMetric, load_features, rank_matches, save_features


@pytest.fixture(scope='module')
def folder(tmp_path_factory, faiss, two_processes):
    """Train a model; score it in one process and in two."""
    folder = tmp_path_factory.mktemp('reid')
    market_folder(folder / 'data')
    runner = train(reid_config(folder / 'data', folder / 'training'))
    torch.save({'state_dict': runner.model.state_dict()}, folder / 'model.pth')
    config = reid_config(folder / 'data', folder / 'alone', load_from=str(folder / 'model.pth'))
    config.test_evaluator.update(save_to=str(folder / 'alone.npz'), rerank=dict(k1=4, k2=2))
    metrics = Runner.from_cfg(config).test()
    rng = np.random.default_rng(0)
    for name, items in (('drawn', 60), ('one_item', 1)):
        sides = (rng.standard_normal((n, 8)) for n in (9, items))
        meta = ((1 + np.arange(n) % 5, np.full(n, camera)) for n, camera in ((9, 1), (items, 2)))
        save_features(
            ReIDFeatures(*(x for side, own in zip(sides, meta, strict=True) for x in (side, *own))),
            folder / f'{name}.npz',
        )
    scored = reid_config(folder / 'data', folder / 'scored')
    scored.experiment_name = 'scored'
    scored.dump(folder / 'config.py')
    two_processes('reid_parallel.py', folder)
    torch.save(metrics, folder / 'alone.pth')
    return folder


def test_the_metric_is_the_evaluation_of_the_features_it_saves(folder) -> None:
    features, metrics = load_features(folder / 'alone.npz'), torch.load(folder / 'alone.pth', weights_only=False)
    assert (features.query_ids.tolist(), set(features.query_cams)) == (list(range(7, 13)), {1})
    assert np.bincount(features.gallery_ids).tolist() == [3, *[0] * 6, *[5] * 6]  # distractors stay, junk is gone
    assert features.gallery_paths[0].endswith('bounding_box_test/0000_c1s1_000000_00.jpg')
    expected = rank_matches(features).summary()
    assert {f'reid/{k}': v for k, v in expected.items()}.items() <= metrics.items()
    assert expected['mAP'] > 0.5
    assert set(metrics) == {f'reid/{p}{k}' for p in ('', 'rerank_') for k in expected}


def test_two_processes_score_as_one(folder) -> None:
    alone, together = (load_features(folder / f'{name}.npz') for name in ('alone', 'together'))
    assert len(together.query_ids) + len(together.gallery_ids) == 39  # an odd number: a sampler repeats one image
    for side in ('query', 'gallery'):
        for name in ('ids', 'cams', 'paths'):
            assert getattr(alone, f'{side}_{name}').tolist() == getattr(together, f'{side}_{name}').tolist()
        # Another batch size may round otherwise.
        np.testing.assert_allclose(getattr(alone, f'{side}_features'), getattr(together, f'{side}_features'), atol=1e-5)
    metrics = torch.load(folder / 'alone.pth', weights_only=False)
    for rank in range(2):
        own = torch.load(folder / f'rank{rank}.pth', weights_only=False)['metrics']
        assert own == pytest.approx({k: v for k, v in metrics.items() if 'rerank' not in k}, abs=1e-12)


def test_two_processes_that_share_the_gallery_find_the_scores_of_one(folder, capsys) -> None:
    results = [torch.load(folder / f'rank{rank}.pth', weights_only=False)['scores'] for rank in range(2)]
    assert results[1] == [None, None, None]  # only the first prints
    expected = rank_matches(load_features(folder / 'alone.npz')).summary()
    assert {k: results[0][0][k] for k in expected} == pytest.approx(expected, abs=1e-12)  # of a config and a checkpoint
    main = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'eval_reid.py'))['main']
    options = ['--expand', '2', '--rerank', '--k1', '4', '--k2', '2']
    for scores, name, more in zip(results[0][1:], ('drawn', 'one_item'), (options, []), strict=True):
        main([str(folder / f'{name}.npz'), *more])
        assert scores == json.loads(capsys.readouterr().out.splitlines()[-1])


def test_two_processes_validate_the_model_that_they_save(folder) -> None:
    """Each has seen other images, but BatchNorm's statistics are made the same before."""
    config = reid_config(folder / 'data', folder / 'again', load_from=str(folder / 'trained' / 'epoch_1.pth'))
    config.test_evaluator.save_to = str(folder / 'again.npz')
    Runner.from_cfg(config).test()
    validated, again = (load_features(folder / f'{name}.npz') for name in ('validated', 'again'))
    np.testing.assert_allclose(validated.gallery_features, again.gallery_features, atol=1e-5)


def test_the_triplet_loss_sees_the_batches_of_both_processes(folder) -> None:
    for rank in range(2):
        results = torch.load(folder / f'rank{rank}.pth', weights_only=False)
        torch.testing.assert_close(results['together'], results['alone'], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures('faiss')
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(metric='l2'), "got 'l2' and 'precision'"),
        (dict(ap='auc'), "got 'cosine' and 'auc'"),
        (dict(ranks=('1', 5)), r"ranks=\('1', 5\); expected whole numbers"),
        (dict(ranks=1), 'ranks=1; expected whole numbers'),
        (dict(ranks=(0,)), 'of at least 1'),
        (dict(save_to='features.npy'), "save_to='features.npy'; expected the name of a file .npz"),
        (dict(rerank=dict(k=3)), 'rerank takes k1, k2 and lambda_value'),
        (dict(rerank=dict(k1=0)), 'k1 of at least 1'),
    ],
)
def test_options_are_checked_before_the_run(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReIDMetric(**options)


@pytest.mark.usefixtures('faiss')
def test_junk_is_not_re_ranked() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6)).astype(np.float32)
    samples = [
        dict(
            feature=torch.from_numpy(x[i]),
            identity=int(rng.integers(-1, 5)) if i > 9 else 1 + i % 4,
            camera=1 + i % 3,
            is_query=i < 10,
        )
        for i in range(60)
    ]
    scores = []
    for kept in (samples, [s for s in samples if s['identity'] != -1]):
        metric = ReIDMetric(rerank=dict(k1=5, k2=2))
        metric.process(None, kept)
        scores.append(metric.evaluate(len(kept)))
    assert len(kept) < 60
    assert scores[0] == scores[1]


def sample(**changes: object) -> dict:
    return dict(feature=torch.ones(4), identity=1, camera=1, is_query=True) | changes


def score(samples: list[dict]) -> dict[str, float]:
    metric = ReIDMetric()
    metric.process(None, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize(
    ('samples', 'message'),
    [
        ([{k: v for k, v in sample().items() if k != 'feature'}], "hold no 'feature'"),
        ([{k: v for k, v in sample().items() if k != 'camera'}], 'lack camera: give the test pipeline'),
        ([sample()], 'holds no gallery image'),
        ([sample(is_query=False)], 'holds no query image'),
        ([sample(), sample(is_query=False)], 'none of the 1 queries has a match'),
        (
            [sample(), sample(is_query=False, camera=2, feature=torch.full((4,), torch.nan))],
            'gallery_features: row 0 holds a number that is not finite',
        ),
    ],
)
def test_mistakes_are_reported(samples: list[dict], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(samples)
