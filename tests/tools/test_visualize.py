import importlib.util
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, rank_matches, save_features

TOOL = Path(__file__).parents[2] / 'tools' / 'visualize.py'
_spec = importlib.util.spec_from_file_location('visualize', TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def along_a_line(
    queries: list[tuple[float, int, int]], gallery: list[tuple[float, int, int]], folder: Path | None = None
) -> ReIDFeatures:
    """Place items, each a position, an identity and a camera, on a line; with a folder they get images there."""
    sides = []
    for name, items in (('query', queries), ('gallery', gallery)):
        positions, ids, cams = zip(*items, strict=True)
        sides += [np.array(positions, np.float32)[:, None], np.array(ids), np.array(cams)]
        if folder:
            paths = [folder / f'{name}{i}.png' for i in range(len(items))]
            for i, path in enumerate(paths):
                cv2.imwrite(str(path), np.full((32 + i % 3, 16, 3), 9 * i, np.uint8))
            sides.append(np.array([str(path) for path in paths]))
    names = [name for side in ('query', 'gallery') for name in (
        f'{side}_features', f'{side}_ids', f'{side}_cams', *([f'{side}_paths'] if folder else []))]
    return ReIDFeatures(**dict(zip(names, sides, strict=True)))


def people(folder: Path) -> ReIDFeatures:
    return along_a_line(
        [(0., 1, 1), (10., 2, 1), (20., 3, 1), (20., 9, 1)],
        [(0., 1, 1), (0.5, 1, 2), (3., 1, 3), (9., 5, 2), (9.5, 2, 2), (11., 2, 3), (19.5, 2, 4), (20.5, 0, 2),
         (21.5, 3, 2), (20., -1, 2)], folder)


def brute_force(features: ReIDFeatures, query: int, metric: str) -> list[tuple[float, bool, int]]:
    x, identity = features.query_features[query].astype(np.float64), features.query_ids[query]
    found = []
    for item, (y, other, camera) in enumerate(zip(
            features.gallery_features.astype(np.float64), features.gallery_ids, features.gallery_cams, strict=True)):
        if other == -1 or (other == identity > 0 and camera == features.query_cams[query]):
            continue
        distance = (float(np.sqrt(((x - y) ** 2).sum())) if metric == 'euclidean' else
                    1 - float((x * y).sum()) / max(float(np.sqrt((x * x).sum() * (y * y).sum())), 1e-30))
        found.append((round(distance, 12), bool(other == identity > 0), item))
    return sorted(found)


def test_the_best_the_median_and_the_worst_are_chosen():
    chosen = tool.choose(np.array([0.5, 0.9, 0.1, 0.7, 0.3]), 2)
    assert {name: rows.tolist() for name, rows in chosen.items()} == {
        'best': [1, 3], 'median': [3, 0], 'worst': [2, 4]}
    chosen = tool.choose(np.array([0.5, 0.9, 0.1]), 1)
    assert [rows.tolist() for rows in chosen.values()] == [[1], [0], [2]]


def test_equal_average_precisions_and_few_queries_give_a_fixed_choice():
    chosen = tool.choose(np.full(6, 0.5), 2)
    assert [rows.tolist() for rows in chosen.values()] == [[0, 1], [2, 3], [5, 4]]
    chosen = tool.choose(np.array([0.2, 0.8]), 4)
    assert [rows.tolist() for rows in chosen.values()] == [[1, 0], [1, 0], [0, 1]]


def test_the_first_items_are_ranked_without_what_the_evaluation_leaves_out(tmp_path: Path):
    features = people(tmp_path)
    items, distances, right = tool.rank_items(features, 0, 3, 'euclidean')
    assert (items.tolist(), distances.tolist(), right.tolist()) == ([1, 2, 3], [0.5, 3, 9], [True, True, False])
    items, distances, right = tool.rank_items(features, 2, 3, 'euclidean')
    assert (items.tolist(), distances.tolist(), right.tolist()) == ([6, 7, 8], [0.5, 0.5, 1.5], [False, False, True])
    items, _, right = tool.rank_items(features, 1, 50, 'euclidean')  # fewer items than asked for
    assert items.tolist() == [4, 3, 5, 2, 1, 6, 0, 7, 8]  # of equal ones the wrong one first
    assert right.tolist() == [True, False, True, False, False, True, False, False, False]


def test_of_many_equal_items_the_wrong_ones_come_first():
    features = along_a_line([(1., 1, 1)], [(1., 1, 2)] * 40 + [(1., 2, 2)] * 3 + [(1., -1, 2)] * 2)
    for metric in ('cosine', 'euclidean'):
        items, _, right = tool.rank_items(features, 0, 4, metric)
        assert items.tolist() == [40, 41, 42, 0]
        assert right.tolist() == [False, False, False, True]


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('seed', range(6))
def test_rankings_agree_with_plain_loops_and_with_the_evaluation(
    seed: int, metric: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tool, 'BLOCK', 7)
    rng = np.random.default_rng(seed)
    levels = 3 if seed % 2 else 1000  # few levels make many ties

    def draw(count: int, lowest: int) -> tuple[np.ndarray, ...]:
        return (rng.integers(-levels, levels, (count, 3)).astype(np.float32), rng.integers(lowest, 4, count),
                rng.integers(0, 3, count))

    features = ReIDFeatures(*draw(6, 1), *draw(40, -1))
    retrieval = rank_matches(features, metric)
    ends = retrieval.counts.cumsum()
    for query, start, end in zip(retrieval.queries, ends - retrieval.counts, ends, strict=True):
        expected = brute_force(features, query, metric)
        for top in (1, 5, 100):
            items, distances, right = tool.rank_items(features, query, top, metric)
            assert right.tolist() == [x[1] for x in expected[:top]]
            np.testing.assert_allclose(distances, [x[0] for x in expected[:top]], rtol=1e-9, atol=1e-9)
            assert items.tolist() == [x[2] for x in expected[:top]]
        assert (np.flatnonzero(right) + 1).tolist() == retrieval.ranks[start:end].tolist()


def test_three_pictures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    save_features(people(tmp_path), tmp_path / 'features.npz')
    out = tmp_path / 'new' / 'pictures'
    tool.main(['ranking', str(tmp_path / 'features.npz'), '--out', str(out), '--top', '3', '--queries', '2',
               '--metric', 'euclidean'])
    # Average precisions: 1; (1 + 2 / 3 + 3 / 6) / 3; 1 / 3. Query 3 has no match.
    assert capsys.readouterr().out.splitlines() == [
        f'{out / "best.png"}: AP 0.722 to 1.00', f'{out / "median.png"}: AP 0.722 to 1.00',
        f'{out / "worst.png"}: AP 0.333 to 0.722']
    for name in ('best', 'median', 'worst'):
        height, width, _ = cv2.imread(str(out / f'{name}.png')).shape
        assert 500 < height < 1000
        assert 700 < width < 1000


def test_a_folder_of_arrays_is_read_and_one_query_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture):
    features = people(tmp_path)
    (tmp_path / 'features').mkdir()
    for name, values in vars(features).items():
        np.save(tmp_path / 'features' / f'{name}.npy', values)
    tool.main(['ranking', str(tmp_path / 'features'), '--out', str(tmp_path), '--top', '1', '--queries', '1',
               '--metric', 'euclidean'])
    assert [line.rpartition(': ')[2] for line in capsys.readouterr().out.splitlines()] == [
        'AP 1.00 to 1.00', 'AP 0.722 to 0.722', 'AP 0.333 to 0.333']


def test_a_row_shows_the_query_and_its_items_in_frames(tmp_path: Path):
    features = people(tmp_path)
    rankings = [tool.rank_items(features, query, 2, 'euclidean') for query in (0, 1)]
    figure = tool.draw_rankings(features, [0, 1], [1, 0.72222], rankings, 'title')
    assert [axes.get_title() for axes in figure.axes] == [
        'id 1, cam 1\nAP 1.00', '1:  0.5000\nid 1, cam 2', '2:  3.000\nid 1, cam 3',
        'id 2, cam 1\nAP 0.722', '1:  0.5000\nid 2, cam 2', '2:  1.000\nid 5, cam 2']
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == [0, 9, 18, 9, 36, 27]
    frames = {(axes.get_title()[0], to_hex(axes.spines['left'].get_edgecolor()), axes.spines['left'].get_linestyle())
              for axes in figure.axes[4:]}
    assert frames == {('1', '#009e73', 'solid'), ('2', '#d7301f', (0, (2.5, 1.5)))}
    assert figure.texts[0].get_text() == f'title\n{tool.LEGEND}'
    # Nothing reaches over the edge, no title into its neighbour.
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    for box in [figure.texts[0].get_window_extent(), *boxes, *(axes.get_tightbbox() for axes in figure.axes)]:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert all(a.x1 < b.x0 for row in (boxes[:3], boxes[3:]) for a, b in pairwise(row))
    assert figure.texts[0].get_window_extent().y0 > boxes[0].y1


def test_images_are_read_as_rgb_and_made_smaller(tmp_path: Path):
    path = tmp_path / 'large.png'
    cv2.imwrite(str(path), np.full((1000, 500, 3), (10, 20, 30), np.uint8))
    image = tool.read_image(np.str_(path))
    assert image.shape == (320, 160, 3)
    assert image[0, 0].tolist() == [30, 20, 10]
    cv2.imwrite(str(path), np.zeros((1, 2000), np.uint8))
    assert tool.read_image(np.str_(path)).shape == (1, 320, 3)


def refused(*argv: object) -> str:
    with pytest.raises(UserError) as error:
        tool.main(['ranking', *map(str, argv)])
    message = str(error.value)
    assert '\n' not in message
    return message


def test_what_is_wrong_is_told(tmp_path: Path):
    features = people(tmp_path)
    file = tmp_path / 'features.npz'
    argv = (file, '--out', tmp_path / 'out')
    save_features(features, file)
    assert refused(*argv, '--top', 0) == '--top: expected 1 to 50, got 0'
    assert refused(*argv, '--queries', 51) == '--queries: expected 1 to 50, got 51'
    (tmp_path / 'gallery1.png').write_bytes(b'broken')
    assert refused(*argv).startswith(f'{tmp_path / "gallery1.png"}: cannot be read as an image')
    (tmp_path / 'gallery1.png').unlink()
    assert refused(*argv).startswith(f'{tmp_path / "gallery1.png"}: the features name this image')
    save_features(replace(features, gallery_paths=None), file)
    assert refused(*argv).startswith(f'{file} lacks gallery_paths, which')
    save_features(replace(features, query_paths=None, gallery_paths=None), file)
    message = refused(*argv)
    assert message.startswith(f'{file} lacks query_paths and gallery_paths, which')
    assert message.endswith('ReIDMetric(save_to=...) or tools/eval_reid.py CONFIG CHECKPOINT hold them')


def test_the_command_line_ends_with_one_line_and_status_1(tmp_path: Path):
    run = subprocess.run([sys.executable, str(TOOL), 'ranking', str(tmp_path / 'none.npz'), '--out', str(tmp_path)],
                         capture_output=True, text=True, check=False,
                         env={'PYTHONPATH': str(TOOL.parents[1]), 'PATH': ''})
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith(f'error: {tmp_path / "none.npz"} does not exist')
    assert run.stdout == ''
