import errno
import importlib.util
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from mmengine.config import Config
from tiny import CLASSES, classification_config, classifier, image_folder

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, rank_matches, save_features
from kd_plugins.functional import at_loss, nst_loss, sp_loss
from kd_plugins.registry import MODELS

TOOL = Path(__file__).parents[2] / 'tools' / 'visualize.py'
sys.path.append(str(TOOL.parent))  # last, since tools/test.py must not hide the standard library's test
_spec = importlib.util.spec_from_file_location('visualize', TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)
from visuals import attention, curves, networks, ranking, similarity, tsne  # noqa: E402


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
    names = [
        name
        for side in ('query', 'gallery')
        for name in (f'{side}_features', f'{side}_ids', f'{side}_cams', *([f'{side}_paths'] if folder else []))
    ]
    return ReIDFeatures(**dict(zip(names, sides, strict=True)))


def people(folder: Path) -> ReIDFeatures:
    return along_a_line(
        [(0.0, 1, 1), (10.0, 2, 1), (20.0, 3, 1), (20.0, 9, 1)],
        [
            (0.0, 1, 1),
            (0.5, 1, 2),
            (3.0, 1, 3),
            (9.0, 5, 2),
            (9.5, 2, 2),
            (11.0, 2, 3),
            (19.5, 2, 4),
            (20.5, 0, 2),
            (21.5, 3, 2),
            (20.0, -1, 2),
        ],
        folder,
    )


def brute_force(features: ReIDFeatures, query: int, metric: str) -> list[tuple[float, bool, int]]:
    x, identity = features.query_features[query].astype(np.float64), features.query_ids[query]
    found = []
    for item, (y, other, camera) in enumerate(
        zip(features.gallery_features.astype(np.float64), features.gallery_ids, features.gallery_cams, strict=True)
    ):
        if other == -1 or (other == identity > 0 and camera == features.query_cams[query]):
            continue
        distance = (
            float(np.sqrt(((x - y) ** 2).sum()))
            if metric == 'euclidean'
            else 1 - float((x * y).sum()) / max(float(np.sqrt((x * x).sum() * (y * y).sum())), 1e-30)
        )
        found.append((round(distance, 12), bool(other == identity > 0), item))
    return sorted(found)


def test_the_best_the_median_and_the_worst_are_chosen():
    chosen = ranking.choose(np.array([0.5, 0.9, 0.1, 0.7, 0.3]), 2)
    assert {name: rows.tolist() for name, rows in chosen.items()} == {'best': [1, 3], 'median': [3, 0], 'worst': [2, 4]}
    chosen = ranking.choose(np.array([0.5, 0.9, 0.1]), 1)
    assert [rows.tolist() for rows in chosen.values()] == [[1], [0], [2]]


def test_equal_average_precisions_and_few_queries_give_a_fixed_choice():
    chosen = ranking.choose(np.full(6, 0.5), 2)
    assert [rows.tolist() for rows in chosen.values()] == [[0, 1], [2, 3], [5, 4]]
    chosen = ranking.choose(np.array([0.2, 0.8]), 4)
    assert [rows.tolist() for rows in chosen.values()] == [[1, 0], [1, 0], [0, 1]]


@pytest.mark.usefixtures('faiss')
def test_the_first_items_are_ranked_without_what_the_evaluation_leaves_out(tmp_path: Path):
    features = people(tmp_path)
    items, distances, right = ranking.rank_items(features, 0, 3, 'euclidean')
    assert (items.tolist(), distances.tolist(), right.tolist()) == ([1, 2, 3], [0.5, 3, 9], [True, True, False])
    items, distances, right = ranking.rank_items(features, 2, 3, 'euclidean')
    assert (items.tolist(), distances.tolist(), right.tolist()) == ([6, 7, 8], [0.5, 0.5, 1.5], [False, False, True])
    items, _, right = ranking.rank_items(features, 1, 50, 'euclidean')  # fewer items than asked for
    assert items.tolist() == [4, 3, 5, 2, 1, 6, 0, 7, 8]  # of equal ones the wrong one first
    assert right.tolist() == [True, False, True, False, False, True, False, False, False]


@pytest.mark.usefixtures('faiss')
def test_of_many_equal_items_the_wrong_ones_come_first():
    features = along_a_line([(1.0, 1, 1)], [(1.0, 1, 2)] * 40 + [(1.0, 2, 2)] * 3 + [(1.0, -1, 2)] * 2)
    for metric in ('cosine', 'euclidean'):
        items, _, right = ranking.rank_items(features, 0, 4, metric)
        assert items.tolist() == [40, 41, 42, 0]
        assert right.tolist() == [False, False, False, True]


@pytest.mark.usefixtures('faiss')
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('seed', range(6))
def test_rankings_agree_with_plain_loops_and_with_the_evaluation(
    seed: int, metric: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranking, 'BLOCK', 7)
    rng = np.random.default_rng(seed)
    levels = 3 if seed % 2 else 1000  # few levels make many ties

    def draw(count: int, lowest: int) -> tuple[np.ndarray, ...]:
        return (
            rng.integers(-levels, levels, (count, 3)).astype(np.float32),
            rng.integers(lowest, 4, count),
            rng.integers(0, 3, count),
        )

    features = ReIDFeatures(*draw(6, 1), *draw(40, -1))
    retrieval = rank_matches(features, metric)
    ends = retrieval.counts.cumsum()
    for query, start, end in zip(retrieval.queries, ends - retrieval.counts, ends, strict=True):
        expected = brute_force(features, query, metric)
        for top in (1, 5, 100):
            items, distances, right = ranking.rank_items(features, query, top, metric)
            assert right.tolist() == [x[1] for x in expected[:top]]
            np.testing.assert_allclose(distances, [x[0] for x in expected[:top]], rtol=1e-9, atol=1e-9)
            assert items.tolist() == [x[2] for x in expected[:top]]
        assert (np.flatnonzero(right) + 1).tolist() == retrieval.ranks[start:end].tolist()


@pytest.mark.usefixtures('faiss')
def test_three_pictures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    save_features(people(tmp_path), tmp_path / 'features.npz')
    out = tmp_path / 'new' / 'pictures'
    tool.main(
        [
            'ranking',
            str(tmp_path / 'features.npz'),
            '--out',
            str(out),
            '--top',
            '3',
            '--queries',
            '2',
            '--metric',
            'euclidean',
        ]
    )
    # Average precisions: 1; (1 + 2 / 3 + 3 / 6) / 3; 1 / 3. Query 3 has no match.
    assert capsys.readouterr().out.splitlines() == [
        f'{out / "best.png"}: AP 0.722 to 1.00',
        f'{out / "median.png"}: AP 0.722 to 1.00',
        f'{out / "worst.png"}: AP 0.333 to 0.722',
    ]
    for name in ('best', 'median', 'worst'):
        height, width, _ = cv2.imread(str(out / f'{name}.png')).shape
        assert 500 < height < 1000
        assert 700 < width < 1000


@pytest.mark.usefixtures('faiss')
def test_a_folder_of_arrays_is_read_and_one_query_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture):
    features = people(tmp_path)
    (tmp_path / 'features').mkdir()
    for name, values in vars(features).items():
        np.save(tmp_path / 'features' / f'{name}.npy', values)
    tool.main(
        [
            'ranking',
            str(tmp_path / 'features'),
            '--out',
            str(tmp_path),
            '--top',
            '1',
            '--queries',
            '1',
            '--metric',
            'euclidean',
        ]
    )
    assert [line.rpartition(': ')[2] for line in capsys.readouterr().out.splitlines()] == [
        'AP 1.00 to 1.00',
        'AP 0.722 to 0.722',
        'AP 0.333 to 0.333',
    ]


@pytest.mark.usefixtures('faiss')
def test_a_row_shows_the_query_and_its_items_in_frames(tmp_path: Path):
    features = people(tmp_path)
    rankings = [ranking.rank_items(features, query, 2, 'euclidean') for query in (0, 1)]
    figure = ranking.draw_rankings(features, [0, 1], [1, 0.72222], rankings, 'title')
    assert [axes.get_title() for axes in figure.axes] == [
        'id 1, cam 1\nAP 1.00',
        '1:  0.5000\nid 1, cam 2',
        '2:  3.000\nid 1, cam 3',
        'id 2, cam 1\nAP 0.722',
        '1:  0.5000\nid 2, cam 2',
        '2:  1.000\nid 5, cam 2',
    ]
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == [0, 9, 18, 9, 36, 27]
    frames = {
        (axes.get_title()[0], to_hex(axes.spines['left'].get_edgecolor()), axes.spines['left'].get_linestyle())
        for axes in figure.axes[4:]
    }
    assert frames == {('1', '#009e73', 'solid'), ('2', '#d7301f', (0, (2.5, 1.5)))}
    assert figure.texts[0].get_text() == f'title\n{ranking.LEGEND}'
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
    image = ranking.read_image(np.str_(path))
    assert image.shape == (320, 160, 3)
    assert image[0, 0].tolist() == [30, 20, 10]
    cv2.imwrite(str(path), np.zeros((1, 2000), np.uint8))
    assert ranking.read_image(np.str_(path)).shape == (1, 320, 3)


def refused(*argv: object, command: str = 'ranking') -> str:
    with pytest.raises(UserError) as error:
        tool.main([command, *map(str, argv)])
    message = str(error.value)
    assert '\n' not in message
    return message


@pytest.mark.usefixtures('faiss')
def test_mistakes_are_reported(tmp_path: Path):
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
    run = subprocess.run(
        [sys.executable, str(TOOL), 'ranking', str(tmp_path / 'none.npz'), '--out', str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={'PYTHONPATH': str(TOOL.parents[1]), 'PATH': ''},
    )
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith(f'error: {tmp_path / "none.npz"} does not exist')
    assert run.stdout == ''


# Pictures of networks.

PICTURES = ('tsne', 'attention', 'similarity')


def write_network(folder: Path, name: str, data: Path, seed: int, model: dict) -> list[str]:
    """Write a config with a test set and a checkpoint of drawn weights; return both paths."""
    torch.manual_seed(seed)
    network = MODELS.build(model)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(dict(state_dict=network.state_dict()), folder / f'{name}.pth')
    config = classification_config(data, folder / 'run', model)
    config.test_dataloader = dict(
        config.train_dataloader,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            config.train_dataloader.dataset, pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]
        ),
    )
    config.dump(str(folder / f'{name}.py'))
    return [str(folder / f'{name}.py'), str(folder / f'{name}.pth')]


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """The options of a teacher and two students on 24 images of four classes."""
    data = image_folder(tmp_path / 'data')
    wide = classifier(8, 8) | dict(data_preprocessor=dict(mean=[90.0] * 3, std=[30.0] * 3, num_classes=CLASSES))
    return [
        '--teacher',
        *write_network(tmp_path, 'teacher', data, 1, wide),
        '--student',
        *write_network(tmp_path, 'plain', data, 2, classifier()),
        '--student',
        *write_network(tmp_path, 'nst', data, 3, classifier()),
        'with NST',
        '--tap',
        'backbone.stage3',
        '--images',
        '8',
        '--out',
        str(tmp_path / 'new' / 'picture.png'),
    ]


def features_of(argv: list[str], command: str = 'tsne', rows: np.ndarray | None = None) -> tuple:
    args = tool.parse_args([command, *argv])
    networks.check_options(args)
    loader = networks.test_set(args.student[0][0])
    if rows is None:
        rows = networks.draw_rows(loader.dataset, args.images, args.seed)
    return rows, loader.dataset, *networks.images_and_features(args, loader, rows)


def similarity_rows(argv: list[str]) -> np.ndarray:
    args = tool.parse_args(['similarity', *argv])
    labels = networks.labels_of(networks.test_set(args.student[0][0]).dataset)
    return similarity.draw_sorted_rows(labels, args.images, args.classes, args.seed)


def overlapping(figure) -> list[tuple[str, str]]:
    """Return the pairs of texts that lie on each other, and those that reach over the edge."""
    figure.draw_without_rendering()
    texts = [*figure.texts]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, *axes.get_yticklabels(), *axes.get_xticklabels()]
    boxes = [(x.get_text(), x.get_window_extent()) for x in texts if x.get_text()]
    edge = figure.bbox
    over = [
        (name, 'edge')
        for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > edge.x1 + 1 or box.y1 > edge.y1 + 1
    ]
    return over + [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]


def test_networks_answer_through_their_own_normalisation_and_images_have_their_colours(argv: list[str], tmp_path: Path):
    rows, dataset, images, teacher, students = features_of(argv)
    assert (teacher.name, [x.name for x in students]) == ('teacher', ['plain', 'with NST'])
    paths = [Path(dataset.get_data_info(i)['img_path']) for i in rows]
    stored = [cv2.imread(str(path)) for path in paths]
    # The students' preprocessor does not swap the channels: they see BGR, and the picture shows RGB.
    assert all(np.array_equal(a, b[..., ::-1]) for a, b in zip(images.pixels, stored, strict=True))
    assert [f'class{label}' for label in images.labels] == [path.parent.name for path in paths]
    assert [images.name(label) for label in images.labels] == [path.parent.name for path in paths]
    for name, mean, std, width, found in (('teacher', 90, 30, 8, teacher), ('plain', 120, 60, 4, students[0])):
        network = MODELS.build(classifier(8, width)).eval()
        network.load_state_dict(torch.load(tmp_path / f'{name}.pth')['state_dict'])
        inputs = (torch.tensor(np.stack(stored)).permute(0, 3, 1, 2).float() - mean) / std
        with torch.no_grad():
            torch.testing.assert_close(found.features, network.backbone(inputs)[0], rtol=1e-5, atol=1e-5)


def test_images_of_a_network_that_reads_rgb_are_shown_in_their_colours(argv: list[str], tmp_path: Path):
    model = classifier() | dict(
        data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, num_classes=CLASSES, to_rgb=True)
    )
    argv[4:6] = write_network(tmp_path, 'rgb', tmp_path / 'data', 2, model)
    rows, dataset, images, *_ = features_of(argv)
    for i, pixels in zip(rows, images.pixels, strict=True):
        assert np.array_equal(pixels, cv2.imread(dataset.get_data_info(i)['img_path'])[..., ::-1])


@pytest.mark.parametrize('kind', ['STL10', 'CIFAR10'])
def test_arrays_are_shown_in_their_colours(argv: list[str], tmp_path: Path, kind: str):
    red = np.zeros((1, 3, 96, 96), np.uint8)
    red[:, 0] = 200
    (tmp_path / 'stl10_binary').mkdir()
    (tmp_path / 'stl10_binary/test_X.bin').write_bytes(red.tobytes())
    (tmp_path / 'stl10_binary/test_y.bin').write_bytes(bytes([1]))
    (tmp_path / 'cifar-10-batches-py').mkdir()
    entry = {'data': red[..., :32, :32].reshape(1, -1), 'labels': [0]}
    (tmp_path / 'cifar-10-batches-py/test_batch').write_bytes(pickle.dumps(entry, protocol=2))
    data = dict(type=f'kd_plugins.{kind}', data_root=str(tmp_path), split='test', pipeline=[dict(type='PackInputs')])
    with Path(argv[4]).open('a') as config:
        config.write(f'\ntest_dataloader["dataset"] = {data!r}\n')
    _, _, images, *_ = features_of(argv, rows=np.array([0]))
    assert images.pixels[0][5, 5].tolist() == [200, 0, 0]


def test_a_test_set_with_options_of_workers_is_read_without_them(argv: list[str]):
    config = Config.fromfile(argv[4])
    config.test_dataloader.update(num_workers=2, prefetch_factor=4, timeout=5)
    config.dump(argv[4])
    assert len(networks.test_set(argv[4]).dataset) == 24


def test_a_point_of_the_embedding_is_a_channel_and_its_linear_mmd_is_the_loss():
    maps = [torch.randn(5, 3, 4, 4).double(), torch.randn(5, 6, 8, 8).double()]
    student, teacher = (networks.Network(x, f) for x, f in zip('st', maps, strict=True))
    points = tsne.channel_points([student, teacher])
    assert [x.shape for x in points] == [(3, 5 * 16), (6, 5 * 16)]
    pooled = maps[1].view(5, 6, 4, 2, 4, 2).mean((3, 5))
    for found, x in zip(points, (maps[0], pooled), strict=True):
        for channel in range(x.shape[1]):
            expected = [x[n, channel].flatten() / x[n, channel].square().sum().sqrt() / 5**0.5 for n in range(5)]
            np.testing.assert_allclose(found[channel], torch.cat(expected), atol=1e-12)
    linear = float(((points[0].mean(0) - points[1].mean(0)) ** 2).sum())
    assert linear == pytest.approx(nst_loss(maps[0], maps[1], 'linear').item(), rel=1e-9)


def test_channels_that_are_never_active_are_no_points():
    maps = torch.rand(2, 4, 3, 3)
    maps[:, 1] = 0
    maps[0, 2] = 0
    (points,) = tsne.channel_points([networks.Network('x', maps)])
    assert len(points) == 3
    maps[:, 2:] = 0
    with pytest.raises(UserError, match='x: at this tap fewer than 2 channels are active'):
        tsne.channel_points([networks.Network('x', maps)])


def test_an_embedding_is_joint_and_keeps_equal_channels_together():
    rng = np.random.default_rng(0)
    teacher, other = rng.normal(size=(2, 12, 20)).astype(np.float32)
    points = tsne.embed([teacher, teacher + 1e-6, other + 5], 0)
    assert [x.shape for x in points] == [(12, 2)] * 3
    spread = np.ptp(np.concatenate(points), axis=0).max()
    assert np.linalg.norm(points[0] - points[1], axis=1).max() < 0.05 * spread
    assert np.linalg.norm(points[0].mean(0) - points[2].mean(0)) > 0.2 * spread
    again = tsne.embed([teacher, teacher + 1e-6, other + 5], 0)
    assert all(np.array_equal(a, b) for a, b in zip(points, again, strict=True))


def test_maps_are_enlarged_within_their_range():
    maps = torch.rand(3, 4, 4)
    large = attention.enlarge(maps, (12, 16))
    assert large.shape == (3, 12, 16)
    assert large.max() <= maps.max()
    np.testing.assert_allclose(attention.enlarge(torch.full((1, 2, 2), 3.0), (5, 5)), 3)


def test_a_batch_is_sorted_by_class_with_equally_many_of_each():
    labels = np.array([2, 0, 1, 0, 2, 1, 0, 2, 1, 0, 5, 5])
    rows = similarity.draw_sorted_rows(labels, 8, 10, 0)
    assert labels[rows].tolist() == [0, 0, 1, 1, 2, 2, 5, 5]
    assert len(set(rows)) == 8
    assert labels[similarity.draw_sorted_rows(labels, 6, 2, 0)].tolist() == [0, 0, 0, 0, 5, 5]
    draws = {tuple(similarity.draw_sorted_rows(labels, 4, 10, seed)) for seed in range(8)}
    assert len(draws) > 1
    with pytest.raises(UserError, match='at most the 12 test images of 4 classes, got 13'):
        similarity.draw_sorted_rows(labels, 13, 10, 0)


def test_no_texts_lie_on_each_other():
    rng = np.random.default_rng(0)
    long = 'a name that is longer than its place'
    about = 'backbone.stage3.0.conv1 (teacher: backbone.stage3.2): channels\nanother line'
    for count in (1, 2, 4):
        titles = [f'{networks.cut(long, 36)}\nMMD² to the teacher 0.0416'] * count
        figure = tsne.draw_embedding(rng.normal(size=(9, 2)), rng.normal(size=(count, 9, 2)), titles, about)
        assert len(figure.axes) == count
        assert not overlapping(figure)
        images = networks.Images(list(rng.integers(0, 255, (3, 32, 16 * count, 3), np.uint8)), [0, 1, None], [long])
        maps = rng.random((count + 1, 3, 32, 16 * count))
        figure = attention.draw_attention(
            images, maps, rng.random((count, 3)), ['input', 'teacher', *[long] * count], about
        )
        assert len(figure.axes) == 3 * (count + 2)
        assert figure.axes[0].get_xlabel() == 'a name that is lo…'
        assert not overlapping(figure)
        figure = similarity.draw_matrices(
            rng.random((count + 1, 20, 20)), ['teacher', *titles[:count]], [(long, 5)] * 4, about
        )
        assert not overlapping(figure)


def test_a_picture_that_cannot_be_written_whole_leaves_the_earlier_one(tmp_path: Path):
    class Failing(Figure):
        def savefig(self, out: str, **options: object) -> None:
            Path(out).write_bytes(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device')

    (tmp_path / 'x.png').write_bytes(b'whole')
    with pytest.raises(UserError, match=r'No space left on device.*earlier files are kept'):
        networks.save(Failing(), tmp_path / 'x.png', '')
    assert (tmp_path / 'x.png').read_bytes() == b'whole'
    assert [path.name for path in tmp_path.iterdir()] == ['x.png']


@pytest.mark.parametrize('command', PICTURES)
def test_a_picture_is_written_and_the_same_each_time(
    command: str, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = Path(argv[-1])
    written = []
    for _ in range(2):
        tool.main([command, *argv])
        written.append(out.read_bytes())
        (line,) = [x for x in capsys.readouterr().out.splitlines() if str(out) in x]
    assert written[0] == written[1]
    assert min(cv2.imread(str(out)).shape[:2]) > 300
    rows = similarity_rows(argv) if command == 'similarity' else None
    _, _, _, teacher, students = features_of(argv, command, rows)
    figures = [float(part.rpartition(' ')[2]) for part in line.split(', ')]
    if command == 'tsne':
        expected = [nst_loss(x.features, teacher.features).item() for x in students]
        assert figures == pytest.approx(expected, rel=1e-3)
    elif command == 'attention':
        # ||p - q||^2 = 2 - 2 cos of unit vectors, and AT's loss of one image is that norm.
        pairs = [(x.features.split(1), teacher.features.split(1)) for x in students]
        losses = [[at_loss(s, t).item() for s, t in zip(*pair, strict=True)] for pair in pairs]
        expected = [np.mean([1 - loss**2 / 2 for loss in own]) for own in losses]
        assert figures == pytest.approx(expected, abs=6e-4)
    else:
        expected = [sp_loss(x.features, teacher.features).item() for x in students]
        assert figures == pytest.approx(expected, rel=1e-3)
    assert all(name in line for name in ('plain', 'with NST'))


def test_the_teacher_may_be_tapped_elsewhere_and_vectors_have_similarities(argv: list[str], tmp_path: Path):
    _, _, _, teacher, students = features_of([*argv, '--teacher-tap', 'backbone.stage1'])
    assert teacher.features.shape[1:] == (8, 16, 16)
    assert students[0].features.shape[1:] == (16, 4, 4)
    tool.main(['similarity', *argv, '--tap', 'neck', '--out', str(tmp_path / 'neck.svg')])
    assert 'SP loss' in (tmp_path / 'neck.svg').read_text()


def test_pictures_held_in_memory_are_drawn_too(argv: list[str], tmp_path: Path):
    """BatchedImages collates whole batches and has no records."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    rows = rng.integers(0, 256, (20, 3072), np.uint8)
    (folder / 'test_batch').write_bytes(pickle.dumps({'data': rows, 'labels': [*range(10)] * 2}, protocol=2))
    data = dict(
        type='kd_plugins.BatchedImages',
        dataset=dict(type='kd_plugins.CIFAR10', data_root=str(tmp_path), split='test', _scope_='mmpretrain'),
    )
    (tmp_path / 'set.py').write_text(
        f'custom_imports = dict(imports=["kd_plugins"])\ndefault_scope = "mmpretrain"\ntest_dataloader = dict('
        f'batch_size=8, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), '
        f'collate_fn=dict(type="kd_plugins.whole_batch"), dataset={data!r})'
    )
    loader = networks.test_set(str(tmp_path / 'set.py'))
    labels = networks.labels_of(loader.dataset)
    assert labels.tolist() == [*range(10)] * 2
    batch = loader.collate_fn([loader.dataset[3], loader.dataset[14]])
    assert np.array_equal(batch['inputs'].flatten(1), rows[[3, 14]])
    with Path(argv[4]).open('a') as config:  # the first student's, whose test set is drawn from
        config.write(f'\ntest_dataloader = {Config.fromfile(tmp_path / "set.py").test_dataloader.to_dict()!r}\n')
    for command in PICTURES:
        tool.main([command, *argv])
        assert min(cv2.imread(argv[-1]).shape[:2]) > 300
        Path(argv[-1]).unlink()


def test_mistakes_in_pictures_of_networks_are_reported(argv: list[str], tmp_path: Path):
    def message_of(*more: object, command: str = 'tsne', start: int = 0) -> str:
        return refused(*argv[start:], *more, command=command)

    assert "no module 'backbone.stage4' to tap; nearest names: backbone.stage" in message_of('--tap', 'backbone.stage4')
    for command in ('tsne', 'attention'):
        message = message_of('--tap', 'neck', command=command)
        assert 'teacher: expected feature maps (N, C, H, W), got (8, 32)' in message
    assert '--images: expected at most the 24 images' in message_of('--images', 25)
    assert '--images: expected at most the 24 test images of 4 classes' in message_of(
        '--images', 25, command='similarity'
    )
    assert '--images: expected at most 24 rows' in message_of('--images', 25, command='attention')
    assert message_of('--images', 1) == '--images: expected at least 2, got 1'
    assert message_of('--seed', -1) == '--seed: expected at least 0, got -1'
    assert message_of('--classes', 1, command='similarity') == '--classes: expected at least 2, got 1'
    assert 'expected a file ending in .png, .pdf, .svg' in message_of('--out', tmp_path / 'picture.doc')
    (tmp_path / 'folder.png').mkdir()
    assert 'cannot be written (Is a directory)' in message_of('--out', tmp_path / 'folder.png')
    assert 'expected a config, a checkpoint and, optionally, a name' in message_of('--student', 'one.py')
    assert "two students are named 'plain'" in message_of('--student', *argv[4:6])
    assert f'config {tmp_path / "none.py"} does not exist' in message_of('--student', tmp_path / 'none.py', argv[5])
    message = message_of('--student', argv[4], tmp_path / 'none.pth', 'x')
    assert f'checkpoint {tmp_path / "none.pth"} does not exist' in message
    assert 'does not fit ImageClassifier' in message_of('--student', argv[4], argv[2], 'x')
    (tmp_path / 'bare.py').write_text('model = dict()')
    argv[4] = str(tmp_path / 'bare.py')
    assert 'bare.py has no test_dataloader' in message_of()


def test_a_mistake_in_a_picture_of_networks_ends_in_one_line(argv: list[str]):
    run = subprocess.run(
        [sys.executable, str(TOOL), 'attention', *argv, '--tap', 'backbon'],
        capture_output=True,
        text=True,
        check=False,
        env={'PYTHONPATH': str(TOOL.parents[1]), 'PATH': ''},
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("error: ImageClassifier has no module 'backbon' to tap")
    assert 'Traceback' not in run.stderr


def logged_run(folder, lines, session='20260101_000000'):
    """Write the scalars of a session as mmengine does."""
    file = folder / session / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    return folder


def logged(iteration, epoch, **losses):
    """Return the line of a training iteration; ``loss`` is the sum, where it is not given."""
    found = dict(loss=sum(losses.values())) | losses
    return dict(lr=0.1, **found, time=1.0, epoch=epoch, iter=iteration, step=iteration)


def scored(epoch, **metrics):
    return metrics | dict(data_time=0.1, time=0.1, step=epoch)


def test_courses_are_what_was_logged(tmp_path):
    detector = [logged(i, i // 2, loss_cls=3.0 / i, loss_nst=1.0 / i) for i in (2, 4, 6)]
    detector += [
        scored(1, mAP=0.1),
        scored(2, mAP=0.3, note='text'),
        3,
        {'loss_cls': float('nan'), 'iter': 8, 'epoch': 4},
    ]
    classifier = [logged(2, 1, loss=0.9, loss_kd=0.3), logged(4, 2, loss=0.6, loss_kd=0.6)]  # the task's own loss
    watched = [logged(1, 1, loss=2.0, loss_kd=1.0) | {'loss_share/kd': 1.0, 'raw_loss/kd': 5.0, 'weight/kd': 0.2}]
    found = [
        curves.course_of(logged_run(tmp_path / name, lines), name)
        for name, lines in (('a', detector), ('b', classifier), ('c', watched))
    ]
    assert found[0].losses == dict(cls={2: 1.5, 4: 0.75, 6: 0.5}, nst={2: 0.5, 4: 0.25, 6: pytest.approx(1 / 6)})
    assert found[0].shares == {
        name: pytest.approx(dict.fromkeys((2, 4, 6), x)) for name, x in (('cls', 0.75), ('nst', 0.25))
    }
    assert found[0].metrics == dict(mAP={1: 0.1, 2: 0.3})
    assert found[1].losses == dict(task={2: 0.9, 4: 0.6}, kd={2: 0.3, 4: 0.6})
    assert found[1].shares == dict(task={2: pytest.approx(0.75), 4: 0.5}, kd={2: pytest.approx(0.25), 4: 0.5})
    assert found[2].shares == dict(kd={1: 1.0})  # of WatchHook: the task's loss does not train
    assert [*found[2].losses] == ['task', 'kd']


def test_a_resumed_run_takes_the_place_of_what_it_repeats(tmp_path):
    first = [logged(i, i // 2, loss_cls=1.0) for i in (2, 4, 6)] + [
        scored(1, mAP=0.1),
        scored(2, mAP=0.2),
        scored(3, mAP=9),
    ]
    second = [logged(i, i // 2, loss_cls=0.5) for i in (6, 8)] + [scored(3, mAP=0.3), scored(4, mAP=0.4)]
    logged_run(tmp_path, first, '20260101_000000')
    logged_run(tmp_path, second, '20260102_000000')
    logged_run(tmp_path, [scored(0, mAP=7)], '20260103_000000')  # a validation alone
    found = curves.course_of(tmp_path, 'run')
    assert found.losses == dict(cls={2: 1.0, 4: 1.0, 6: 0.5, 8: 0.5})
    assert found.metrics == dict(mAP={1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})


def test_a_new_run_in_an_old_folder_is_drawn_alone(tmp_path):
    for time, iterations in (('a', range(1, 10)), ('b', (10, 20))):
        lines = [logged(i, 1 if i < 20 else 2, loss=100.0 if time == 'a' else 1.0) for i in iterations]
        logged_run(tmp_path, lines, time)
    assert curves.course_of(tmp_path, 'run').losses == dict(task={10: 1.0, 20: 1.0})


def test_a_loss_that_is_not_finite_leaves_the_others_as_they_are(tmp_path):
    lines = [logged(1, 1, loss=0.8, loss_cls=0.4, loss_bbox=0.4), logged(2, 1, loss=math.nan, loss_cls=math.nan)]
    assert curves.course_of(logged_run(tmp_path, lines), 'run').losses == dict(cls={1: 0.4}, bbox={1: 0.4})


def test_the_share_of_a_task_with_losses_of_other_names_is_in_the_legend(tmp_path):
    shares = {'loss_share/task': 0.25, 'loss_share/kd': 0.75}
    lines = [logged(i, 1, loss=2.0, loss_cls=0.5, loss_kd=1.5) | shares for i in (1, 2)]
    figure = curves.draw_curves([curves.course_of(logged_run(tmp_path, lines), 'run')], None)
    (legend,) = [legend for axes in figure.axes if (legend := axes.get_legend())]
    assert [text.get_text() for text in legend.get_texts()] == ['cls', 'kd', 'task']


def test_curves_of_runs_by_iterations(tmp_path):
    lines = [
        {'train/loss': 3.0, 'train/loss_a': 1.0, 'train/loss_b': 2.0, 'iter': 5, 'step': 5},
        {'val/mAP': 0.2, 'step': 5},
    ]
    found = curves.course_of(logged_run(tmp_path, lines), 'run')  # with log_with_hierarchy, too
    assert (found.losses, found.metrics, found.by_epoch) == (dict(a={5: 1.0}, b={5: 2.0}), dict(mAP={5: 0.2}), False)
    assert 'at iteration 5' in next(curves.summaries([found], 'mAP'))


def test_of_many_losses_those_of_few_runs_are_drawn_as_one():
    many = {f'd{i}.loss_cls': {1: 1.0 + i} for i in range(9)}
    course = curves.Course('a', dict(cls={1: 0.1}) | many, dict(cls={1: 0.1}) | many, {}, True)
    other = curves.Course('b', dict(cls={1: 0.1}), dict(cls={1: 1.0}), {}, True)
    (found, same), colours = curves.grouped([course, other])
    assert [*found.losses] == ['cls', *(f'd{i}.loss_cls' for i in range(4, 9)), 'others']
    assert found.losses['others'] == found.shares['others'] == {1: 1 + 2 + 3 + 4}
    assert same.losses == other.losses
    assert colours.keys() == found.losses.keys()
    assert len({*colours.values()}) == len(colours)


@pytest.fixture
def logged_runs(tmp_path):
    for name, scale in (('plain', 1.0), ('a method with a name that is much too long', 0.5), ('nst', 0.01)):
        losses = dict(loss_cls=1.0) if name == 'plain' else dict(loss_cls=1.0, loss_nst=scale)
        lines = [logged(i, i // 2, **{key: x / i for key, x in losses.items()}) for i in range(2, 13, 2)]
        logged_run(
            tmp_path / 'runs' / name, lines + [scored(i, **{'a/mAP': i / 9, 'a/AP50': i / 8}) for i in range(1, 7)]
        )
    return sorted((tmp_path / 'runs').iterdir())


def test_the_picture_of_curves_shows_every_run_without_overlaps(tmp_path, logged_runs):
    names = curves.names_of(logged_runs)
    assert names == ['a method with a name that is much too long', 'nst', 'plain']
    courses = [curves.course_of(folder, name) for folder, name in zip(logged_runs, names, strict=True)]
    figure = curves.draw_curves(courses, 'a/mAP')
    figure.draw_without_rendering()
    *parts, metric = figure.axes
    assert len(parts) == 6
    assert parts[0].get_yscale() == 'log'  # 1 beside 0.01
    assert [line.get_ydata()[-1] for line in metric.lines] == [6 / 9] * 3
    assert len({to_hex(line.get_color()) for line in metric.lines}) == 3
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [
        ['cls', 'nst'],
        [f'…{names[0][-29:]}', 'nst', 'plain'],
    ]
    boxes = [axes.title.get_window_extent() for axes in parts[::2]] + [x.get_window_extent() for x in legends]
    boxes += [label.get_window_extent() for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    boxes = [box for box in boxes if box.width]
    for i, box in enumerate(boxes):
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize('ending', ['png', 'svg'])
def test_curves_are_written_and_summarised(tmp_path, logged_runs, capsys, ending):
    out = tmp_path / f'curves.{ending}'
    tool.main(['curves', *map(str, logged_runs), '--out', str(out), '--metric', 'a/AP50'])
    assert out.stat().st_size > 1000
    assert 'nst a/AP50 0.75 at epoch 6; plain a/AP50 0.75 at epoch 6' in capsys.readouterr().out


CURVES_REFUSED = {
    'no run': (['empty'], 'expected the folder of a run, with scalars of training'),
    'no folder': (['nowhere'], 'expected the folder of a run, with scalars of training'),
    'twice': (['runs/nst', 'runs/../runs/nst'], 'is given twice'),
    'ending': (['runs/nst', '--out', 'a.gif'], r'expected a file ending in .png, .pdf, .svg'),
    'metric': (['runs/nst', '--metric', 'a/mAp'], "no run has scored 'a/mAp'; nearest names: a/mAP"),
    'too many': (['runs/nst'] * 9, 'expected at most 8 runs in a picture, got 9'),
}


@pytest.mark.parametrize('name', CURVES_REFUSED)
def test_curves_refused(tmp_path, logged_runs, monkeypatch, name):
    arguments, message = CURVES_REFUSED[name]
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        tool.main(['curves', *arguments])


def test_the_metric_of_segmentors_is_the_mean_iou_where_as_many_runs_have_it(tmp_path):
    runs = [
        logged_run(tmp_path / name, [logged(1, 1, loss=1.0), dict(step=1, **scores)])
        for name, scores in (('a', dict(aAcc=9.0, mIoU=2.0)), ('b', dict(aAcc=8.0, mIoU=3.0)), ('c', dict(aAcc=7.0)))
    ]
    courses = [curves.course_of(run, 'run') for run in runs]
    assert curves.metric_of(courses[:2], None) == 'mIoU'
    assert curves.metric_of(courses, None) == 'aAcc'


def test_runs_without_scores_have_losses_alone(tmp_path):
    course = curves.course_of(logged_run(tmp_path, [logged(i, i, loss=1.0 / i) for i in (1, 2)]), 'run')
    assert curves.metric_of([course], None) is None
    assert len(curves.draw_curves([course], None).axes) == 1  # one loss has no shares
    assert [*curves.summaries([course], None)] == ['run task 0.5']
