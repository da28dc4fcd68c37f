"""Score re-identification features: mAP, mINP, cumulative matching.

    python tools/eval_reid.py features.npz
    python tools/eval_reid.py configs/market1501/resnet18.py work_dirs/market1501/resnet18/student.pth --rerank

Features come from an .npz file with query_features, query_ids, query_cams, gallery_features, gallery_ids and
gallery_cams, from a folder with one .npy for each, which is memory-mapped, or from a config and a checkpoint; then they
are extracted once and kept beside the run. Identity -1 is junk (ignored), 0 a distractor (stays in the gallery, never a
match). Items of a query's own identity and camera are left out of its ranking. Queries without a match are left out and
counted. Ties count against the query. The scores are exact: every gallery item counts. Several processes share the
gallery (torchrun --nproc_per_node 2 tools/eval_reid.py features/ --launcher pytorch), to the same scores.

Prints a table and, as the last line, its values as one JSON object. Keys of scores after query expansion begin with
expand_, after re-ranking (of the expanded queries, where both are given) with rerank_, of an approximate search with
approximate_.
"""

import argparse
import copy
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is imported: idle threads that wait by spinning slow down what runs beside.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from rich.console import Console
from rich.table import Table

import kd_plugins
from kd_plugins import evaluation
from kd_plugins.checkpoint import load_weights
from kd_plugins.datasets.repeated import steps_in
from kd_plugins.distillation.sources import student_of
from kd_plugins.engine import Tester, join_group, leave_group, load_run
from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.evaluation import ReIDFeatures, load_features, rank_matches, rank_rows
from kd_plugins.options import add_launcher, add_run_options, check_device, check_least
from kd_plugins.registry import DATASETS, MODELS
from kd_plugins.utils.code import sources
from kd_plugins.utils.models import unwrapped

RANKS = (1, 5, 10, 20)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='features (.npz, or a folder of .npy), or a config (.py)')
    parser.add_argument('checkpoint', nargs='?', help='the weights, for a config')
    parser.add_argument('--metric', choices=['cosine', 'euclidean'], default='cosine')
    parser.add_argument(
        '--ap',
        choices=['precision', 'trapezoid'],
        default='precision',
        help='average precision: the mean of the precision at each match, or the area that the own '
        'code of Market-1501 sums (default: %(default)s)',
    )
    parser.add_argument('--expand', type=int, metavar='N', help='expand each query by its N nearest gallery items')
    parser.add_argument('--alpha', type=float, default=3.0, help='exponent of their weights (default: %(default)s)')
    parser.add_argument('--rerank', action='store_true', help='k-reciprocal re-ranking')
    parser.add_argument('--k1', type=int, default=20, help='neighbours in the re-ranking (default: %(default)s)')
    parser.add_argument('--k2', type=int, default=6, help='neighbours that are averaged in it (default: %(default)s)')
    parser.add_argument(
        '--lambda',
        type=float,
        default=0.3,
        dest='lambda_value',
        metavar='L',
        help='weight of the original distance in it (default: %(default)s)',
    )
    parser.add_argument('--approximate', choices=['ivf', 'hnsw'], help='also search by such an index of faiss')
    parser.add_argument(
        '--top', type=int, default=100, metavar='K', help='number of items that it returns (default: %(default)s)'
    )
    parser.add_argument('--device', help='where similarities are computed (default: a GPU where there is one)')
    add_run_options(parser, 'the extracted features')
    add_launcher(parser)
    args = parser.parse_args(argv)
    if Path(args.source).suffix == '.py' and args.checkpoint is None:
        raise UserError(f'{args.source} is a config: give the checkpoint to score after it')
    if Path(args.source).suffix != '.py' and args.checkpoint is not None:
        raise UserError(f'{args.source}: expected a config (.py) before a checkpoint; features stand alone')
    if args.expand is not None and args.metric != 'cosine':
        raise UserError('--expand makes queries of norm 1, which go with --metric cosine only')
    check_device(args.device)
    check_least(args, expand=1, alpha=0, k1=1, k2=1, top=1)
    if not 0 <= args.lambda_value <= 1:
        raise UserError(f'--lambda: expected a number from 0 to 1, got {args.lambda_value}')
    if not math.isfinite(args.alpha):
        raise UserError(f'--alpha: expected a finite number, got {args.alpha}')
    for wanted, name in (
        (args.expand is not None, 'expand_queries'),
        (args.rerank, 'KReciprocal'),
        (args.approximate, 'rank_approximately'),
    ):
        if wanted:
            getattr(evaluation, name)  # raises where a package is missing
    return args


def extract(args: argparse.Namespace) -> ReIDFeatures:
    """Run the model over the config's test set, or read the features that an earlier call has kept."""
    config = load_run(args.source, args, 'test')
    if not Path(args.checkpoint).is_file():
        raise UserError(f'checkpoint {args.checkpoint} does not exist: give the path of a .pth file')
    with DATASETS.switch_scope_and_registry(config.get('default_scope')) as registry:
        images = registry.build(config.test_dataloader.dataset)
    infos = [images.get_data_info(i) for i in range(len(images))] if hasattr(images, 'get_data_info') else []
    if not infos or not all('img_path' in info for info in infos):
        raise UserError(
            f'{args.source}: expected a test set of people in files, as kd_plugins.Market1501, got a '
            f'{type(images).__name__}'
        )
    paths = [info['img_path'] for info in infos]
    model: Any = copy.deepcopy(dict(config.model))
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    with MODELS.switch_scope_and_registry(config.get('default_scope')) as registry:
        kinds = {type(part) for part in registry.build(student_of(model)).modules()}
    described = repr(
        [
            *(config.get(key) for key in ('model', 'data_preprocessor', 'test_dataloader', 'test_cfg')),
            *((path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths),
            kd_plugins.__version__,
            *sources(kinds | {type(part) for part in (images, *steps_in(images))}),
        ]
    )
    key = hashlib.sha256(described.encode() + Path(args.checkpoint).read_bytes()).hexdigest()[:16]
    kept = Path(config.work_dir, f'features-{key}.npz')
    if kept.is_file():
        print_log(f'features are read from {kept}', 'current')
        return load_features(kept)
    config.test_evaluator = dict(type='kd_plugins.ReIDMetric', save_to=str(kept), device=args.device)
    config.default_hooks.logger = dict(type='LoggerHook', interval=10)
    runner = Tester.from_cfg(config)
    load_weights(unwrapped(runner.model), args.checkpoint, args.allow_pickle)
    runner.test()
    print_log(f'features are kept in {kept}', 'current')
    del runner
    return load_features(kept)


def score(features: ReIDFeatures, args: argparse.Namespace) -> dict[str, float | int | str]:
    """Return the scores that the options name; the first process alone has those that no others can help with."""
    rank = partial(rank_matches, metric=args.metric, device=args.device, progress=is_main_process(), distributed=True)
    exact = rank(features)
    scores: dict[str, float | int | str] = {
        **exact.summary(RANKS, args.ap),
        'queries': len(exact.queries),
        'unmatched_queries': exact.unmatched,
        'gallery': int((features.gallery_ids != -1).sum()),
        'dimensions': features.gallery_features.shape[1],
        'metric': args.metric,
        'ap': args.ap,
    }
    if args.expand is not None or args.rerank or args.approximate:
        features = features.without_junk()
    given = features
    if args.expand is not None:
        expanded = evaluation.expand_queries(
            features.query_features, features.gallery_features, args.expand, args.alpha
        )
        features = replace(features, query_features=expanded)
        found = rank(features)
        scores |= {f'expand_{name}': value for name, value in found.summary(RANKS, args.ap).items()}
    # What the first process does alone comes last, since the others wait for it.
    if args.approximate and is_main_process():
        found, recall = evaluation.rank_approximately(given, args.approximate, args.top, args.metric)
        scores |= {f'approximate_{name}': value for name, value in found.summary(RANKS, args.ap).items()}
        scores |= {'approximate_index': args.approximate, f'approximate_recall{args.top}': recall}
    if args.rerank and is_main_process():
        reranked = evaluation.KReciprocal(
            features.query_features, features.gallery_features, args.k1, args.k2, args.lambda_value, args.metric
        )
        found = rank_rows(reranked.rows(), features)
        scores |= {f'rerank_{name}': value for name, value in found.summary(RANKS, args.ap).items()}
    return scores


def print_scores(scores: dict[str, float | int | str]) -> None:
    """Print the table, then the JSON line."""
    columns = ['mAP', 'mINP', *(f'rank{k}' for k in RANKS)]
    title = (
        f'{scores["queries"]} queries ({scores["unmatched_queries"]} more have no match), '
        f'{scores["gallery"]} gallery items, {scores["metric"]}, AP by {scores["ap"]}'
    )
    table = Table('%', *columns, title=title, title_justify='left')
    for name, prefix in (
        ('exact', ''),
        ('expanded queries', 'expand_'),
        ('re-ranked', 'rerank_'),
        (f'approximate ({scores.get("approximate_index")})', 'approximate_'),
    ):
        if f'{prefix}mAP' in scores:
            table.add_row(name, *(f'{100 * scores[prefix + column]:.2f}' for column in columns))
    Console(width=max(120, Console().width)).print(table)
    print(json.dumps(scores))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if args.checkpoint is None:
        join_group(args.launcher)
        features = load_features(args.source)
    else:
        features = extract(args)
        if not torch.distributed.is_initialized():  # the features were kept, and no runner has done it
            join_group(args.launcher)
    scores = score(features, args)
    if is_main_process():
        print_scores(scores)
    leave_group()


if __name__ == '__main__':
    with one_line_errors():
        main()
