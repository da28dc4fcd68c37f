"""The command line that scores features."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import market_folder, reid_config, train

import kd_plugins
from kd_plugins import evaluation
from kd_plugins.datasets.cifar import CIFAR10
from kd_plugins.errors import UserError
from kd_plugins.evaluation import load_features, rank_matches, rank_rows
from kd_plugins.registry import MODELS

TOOL = Path(__file__).parents[2] / 'tools' / 'eval_reid.py'
_spec = importlib.util.spec_from_file_location('eval_reid', TOOL)
eval_reid = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(eval_reid)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.integers(1, 31, 100), rng.integers(-1, 28, 500)])
    x = (rng.standard_normal((32, 16))[ids] + rng.standard_normal((600, 16))).astype(np.float32)
    cams = rng.integers(1, 4, 600)
    path = tmp_path / 'f.npz'
    np.savez(
        path,
        query_features=x[:100],
        query_ids=ids[:100],
        query_cams=cams[:100],
        gallery_features=x[100:],
        gallery_ids=ids[100:],
        gallery_cams=cams[100:],
    )
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, dict]:
    eval_reid.main([str(x) for x in args])
    output = capsys.readouterr().out
    return output, json.loads(output.splitlines()[-1])


def test_a_file_is_scored_and_the_last_line_is_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, scores = run(capsys, file)
    features = load_features(file)
    exact = rank_matches(features)
    assert scores == exact.summary() | dict(
        queries=len(exact.queries),
        unmatched_queries=exact.unmatched,
        gallery=int((features.gallery_ids != -1).sum()),
        dimensions=16,
        metric='cosine',
        ap='precision',
    )
    assert exact.unmatched > 0
    assert f'{100 * scores["mAP"]:.2f}' in output
    _, trapezoid = run(capsys, file, '--ap', 'trapezoid', '--metric', 'euclidean')
    assert trapezoid['mAP'] == rank_matches(features, 'euclidean').summary(ap='trapezoid')['mAP']


def test_a_folder_of_arrays_gives_the_same(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'arrays'
    folder.mkdir()
    with np.load(file) as arrays:
        for name in arrays.files:
            np.save(folder / f'{name}.npy', arrays[name])
    _, expected = run(capsys, file)
    for source in (folder, folder / 'gallery_features.npy'):
        assert run(capsys, source)[1] == expected


@pytest.mark.usefixtures('faiss')
def test_what_is_asked_for_stands_beside_the_plain_scores(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, plain = run(capsys, file)
    output, scores = run(
        capsys, file, '--rerank', '--k1', 8, '--k2', 3, '--lambda', 0.2, '--approximate', 'ivf', '--top', 20
    )
    features = load_features(file).without_junk()
    reranked = evaluation.KReciprocal(features.query_features, features.gallery_features, 8, 3, 0.2)
    assert scores.items() >= plain.items()
    assert {k: scores[f'rerank_{k}'] for k in ('mAP', 'rank1')}.items() <= rank_rows(
        reranked.rows(), features
    ).summary().items()
    assert scores['rerank_mAP'] > scores['mAP'] + 0.02
    assert 0 < scores['approximate_recall20'] <= 1
    assert all(name in output for name in ('exact', 're-ranked', 'approximate (ivf)'))
    _, expanded = run(capsys, file, '--expand', 3, '--alpha', 1)
    assert expanded['mAP'] == plain['mAP'] < expanded['expand_mAP']


def test_a_model_is_scored_once_and_then_from_its_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    market_folder(tmp_path / 'data')
    config = reid_config(tmp_path / 'data', tmp_path / 'run')
    runner = train(config)
    config.experiment_name, config.log_level = 'scored', 'INFO'
    config.dump(tmp_path / 'config.py')
    torch.save({'state_dict': runner.model.state_dict()}, tmp_path / 'model.pth')
    call = (tmp_path / 'config.py', tmp_path / 'model.pth')
    _, scores = run(capsys, *call)
    (kept,) = (tmp_path / 'run').glob('features-*.npz')
    assert scores['queries'] == 6
    metrics = rank_matches(load_features(kept)).summary()
    assert scores.items() >= metrics.items()
    written = kept.stat().st_mtime_ns
    _, again = run(capsys, *call)
    assert (again, kept.stat().st_mtime_ns) == (scores, written)
    image = next((tmp_path / 'data' / 'query').iterdir())
    image.write_bytes(next((tmp_path / 'data' / 'bounding_box_test').iterdir()).read_bytes())
    assert run(capsys, *call)[1] != scores
    runner.model.head.bnneck.running_mean.normal_(0, 3)
    torch.save({'state_dict': runner.model.state_dict()}, tmp_path / 'model.pth')
    assert run(capsys, *call)[1] != scores
    assert len(list((tmp_path / 'run').glob('features-*.npz'))) == 3


def test_changed_code_of_a_model_or_a_transform_is_scored_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    market_folder(tmp_path / 'data')
    monkeypatch.syspath_prepend(str(tmp_path))
    code = dict(
        reid_own_neck='from mmpretrain.models import GlobalAveragePooling\n\n\nclass Neck(GlobalAveragePooling): ...\n',
        reid_own_step='class Step:\n    def __call__(self, results):\n        return results\n',
    )
    for name, text in code.items():
        (tmp_path / f'{name}.py').write_text(text)
    config = reid_config(tmp_path / 'data', tmp_path / 'run')
    config.model.neck.type = 'reid_own_neck.Neck'
    config.test_dataloader.dataset.pipeline.insert(1, dict(type='reid_own_step.Step'))
    config.dump(tmp_path / 'config.py')
    torch.save(MODELS.build(config.model).state_dict(), tmp_path / 'model.pth')
    call = (tmp_path / 'config.py', tmp_path / 'model.pth')

    def kept() -> int:
        run(capsys, *call)
        return len(list((tmp_path / 'run').glob('features-*.npz')))

    assert (kept(), kept()) == (1, 1)
    for number, (name, text) in enumerate(code.items(), 2):
        (tmp_path / f'{name}.py').write_text(f'{text}# another\n')
        assert (kept(), kept()) == (number, number)
    monkeypatch.setattr(kd_plugins, '__version__', '0.0.0')
    assert kept() == 4


def test_a_test_set_without_files_is_reported(tmp_path: Path) -> None:
    market_folder(tmp_path / 'data')
    config = reid_config(tmp_path / 'data', tmp_path / 'run')
    images = tmp_path / CIFAR10.base_folder / CIFAR10.test_list[0][0]
    images.parent.mkdir()
    images.write_bytes(pickle.dumps({'data': np.zeros((4, 3072), np.uint8), 'labels': [0, 1, 2, 3]}, protocol=2))
    config.test_dataloader = config.val_dataloader
    config.test_dataloader.dataset = dict(type='kd_plugins.CIFAR10', data_root=str(tmp_path), split='test', pipeline=[])
    config.test_cfg, config.test_evaluator = dict(), dict(type='kd_plugins.ReIDMetric')
    config.dump(tmp_path / 'config.py')
    torch.save({}, tmp_path / 'model.pth')
    with pytest.raises(
        UserError, match=r'expected a test set of people in files, as kd_plugins.Market1501, got a CIFAR10'
    ):
        eval_reid.main([str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')])


@pytest.mark.usefixtures('faiss')
def test_mistakes_end_in_one_line(file: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (['none.npz'], 'none.npz does not exist'),
        (['config.py'], 'config.py is a config: give the checkpoint'),
        ([str(file), 'model.pth'], r'expected a config \(.py\) before a checkpoint'),
        ([str(file), '--rerank', '--k1', '0'], '--k1: expected at least 1, got 0'),
        ([str(file), '--expand', '3', '--alpha', '-1'], '--alpha: expected at least 0, got -1'),
        ([str(file), '--expand', '0'], '--expand: expected at least 1, got 0'),
        ([str(file), '--expand', '3', '--metric', 'euclidean'], 'go with --metric cosine only'),
        ([str(file), '--device', 'tpu'], "expected 'cpu' or 'cuda', got 'tpu'"),
    ):
        with pytest.raises(UserError, match=message):
            eval_reid.main(arguments)
    broken = tmp_path / 'broken.npz'
    broken.write_bytes(file.read_bytes()[:100])
    done = subprocess.run([sys.executable, str(TOOL), str(broken)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f'error: {broken} holds no readable arrays')
    assert done.stderr.count('\n') == 1
