"""Train every method on every network and every kind of training data, and make the tables and figures of a paper.

    python tools/study.py configs/studies/quick.py --jobs 2
    python tools/study.py configs/studies/quick.py --table

A call trains the runs that have no result yet and resumes those that were interrupted, by Ctrl-C, SIGTERM or a kill. A
run that fails does not stop the others: it is reported at the end, with the last error in its log, and the exit status
is 1.

A study is a config with these keys (configs/studies/ has examples):

networks      name=dict(config='configs/...py', teacher=<name of a teacher>, terms_from=..., overrides=dict(...),
              methods=dict(<name of a method>=dict(...))); the last adds to those methods on this network
teachers      name=dict(config='configs/...py', overrides=dict(...)); trained first. Or name=dict(given=dict(...)): one
              that is there, the hook's config dict of a teacher, as dict(timm='...')
methods       name=dict(terms=[...], hook=dict(...), wrap=dict(type=...), overrides=dict(...), first=dict(...),
              search=dict(...)); a term
              is a key of terms_from (configs/_base_/methods.py, or what a network names) or a config dict; hook has
              more options of the DistillationHook; wrap makes the model dict(wrap, student=<the network>); first is
              a method that trains the weights from which this one starts, or the name of a method above it;
              search=dict(weight=[0.3, 1.0, 3.0]) chooses the weight of the method's term by successive halving: all
              train to an epoch, the better half goes on to the next, and the best weight is that of the method's runs.
              It scores on the images of validation, never on the test set. epochs=[15, 30] are the ends of the rounds
              (by default the whole training is the last, and each ends at half the next); terms=['nst'] names the
              terms that get the weight, where there are several
corruptions   name=dict(label_noise=..., imbalance=..., common=..., teacher_common=...): options of the training data;
              common and teacher_common add to the study's, and win. clean=dict() by default
seeds         whole numbers below 1000; a teacher's seed is 1000 more than its students'. '{seed}' in any text of a
              run's config is replaced by the student's, as where each seed has a split of its own
replace       configs whose keys replace those of all networks; a network or teacher may have its own replace. common,
              teacher_common: overrides of all runs, of teachers
teacher_data  'clean' or 'same': what teachers learn from; teacher_seeds 'one' or 'each': one for all seeds or one each
teacher_cache True keeps the teachers' features on disk, for all runs that see the same pictures: give networks the
              override train_dataloader=dict(dataset=dict(seed=0)) of BatchedImages, so that all seeds draw the same;
              teacher_cache=False in a method excepts it, as where whole maps would fill the disk
validation    dict(size=5000): images held out of all training and scored beside the test set; runs.csv then has the
              test accuracy of the epoch that was best on them
metric, error, average, references, columns, baseline, title, notes    content and form of the tables

gains.csv has every method's gain over the baseline, paired by seed, with the p of a t-test; gains.png draws it.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Before torch is imported: idle threads that wait by spinning slow down what runs beside.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import Config

from kd_plugins.checkpoint import guard_checkpoints
from kd_plugins.engine import BACKENDS, alone_in, check_backends, watch
from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.options import add_watch, check_least
from kd_plugins.studies.checks import check_runs
from kd_plugins.studies.execute import Execution, LocalLauncher, RayLauncher, check_unchanged
from kd_plugins.studies.plan import load_study
from kd_plugins.studies.report import references, report
from kd_plugins.studies.run import Run
from kd_plugins.utils.cores import usable_cores


def state_of(run: Run) -> str:
    """Describe a run in a word, of seven characters."""
    return 'waits  ' if run.waits else 'changed' if run.changed else 'done   ' if run.finished else 'missing'


def cost(runs: Sequence[Run]) -> str:
    """Describe how much some runs train from an empty folder, and how much of it is the search for weights."""
    searches = list(dict.fromkeys(run.search for run in runs if run.search is not None))
    others = [run for run in runs if run.part != 'search']
    epochs = sum((run.config.get('train_cfg') or {}).get('max_epochs') or 0 for run in others)
    text = f'{len(others)} runs, {epochs} epochs'
    if searches:
        count, spent = sum(len(x.runs) for x in searches), sum(x.cost for x in searches)
        text += f'; before them the search for {len(searches)} weight(s): {count} runs, {spent} epochs in all'
    return text


def threads_of(jobs: int) -> int:
    """Return the number of threads of a run, of so many at once, where none is given."""
    exported = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0]  # those of nested regions follow
    return int(exported) if exported.isdecimal() and int(exported) else max(usable_cores() // jobs, 1)


def make_experiment(backends: Sequence[Mapping[str, Any]]) -> None:
    """Make MLflow's database and experiment where they are missing: of two runs that both make them, one fails."""
    import mlflow

    (backend,) = (backend for backend in backends if backend['type'] == BACKENDS['mlflow'])
    mlflow.set_tracking_uri(backend['tracking_uri'])
    mlflow.set_experiment(backend['exp_name'] or 'Default')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study')
    parser.add_argument('--jobs', type=int, default=1, help='runs at once (default: %(default)s)')
    parser.add_argument(
        '--threads', type=int, help='CPU threads of a run (default: OMP_NUM_THREADS, or else cores / jobs)'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='PATTERN',
        help="runs by folder, as '*/clean/*/seed0', and the teachers that they need",
    )
    parser.add_argument('--table', action='store_true', help='train nothing, only make tables and figures')
    parser.add_argument(
        '--list',
        action='store_true',
        help='train nothing, only list which runs are done, missing, changed since, or wait for the weight that a '
        'search finds; and what runs and searches cost',
    )
    parser.add_argument('--root', help='folder of runs and tables (default: work_dirs/studies/<study>)')
    parser.add_argument(
        '--changed',
        choices=['stop', 'keep', 'redo'],
        default='stop',
        help='what to do with runs made before the study was changed: keep keeps the finished ones '
        '(default: %(default)s)',
    )
    add_watch(parser, BACKENDS)
    parser.add_argument('--launcher', choices=['local', 'ray'], default='local')
    parser.add_argument('--gpus', type=float, default=0.0, help='GPUs that a run reserves, under Ray')
    args = parser.parse_args(argv)
    check_least(args, jobs=1, threads=1, gpus=0)
    guard_checkpoints()
    options: list[str] = []
    watched = Config(dict(work_dir=''))
    if args.watch is not None:
        options = ['--watch', *args.watch]
        watch(watched, args.watch)
        check_backends(watched)
    study = load_study(args.study, args.root)
    references(study)  # mistakes in them are reported before the training
    runs = study.only(args.only) if args.only else study.runs
    if args.list:
        for run in runs:
            print(state_of(run), run.folder.relative_to(study.root).as_posix())
        print(cost(runs))
        return
    if args.table and args.only:
        raise UserError('--table shows all runs of the study, as every call does: leave --only out')
    failed = {}
    if args.table and not any(run.finished for run in study.runs):
        raise UserError(
            f'--table: no run of the study has a result in {study.root}: train it first, or give its --root'
        )
    others = [run for run in study.runs if run.finished and run.changed] if args.table else []
    if others and args.changed == 'stop':
        raise UserError(
            f'--table: {len(others)} finished runs were made with another config or other files than the study now '
            f'has, or under another spelling of --root, the first in {others[0].folder}: give --changed keep to show '
            'them, or --changed redo for tables without them'
        )
    if not args.table:
        check_runs(study)
        threads = args.threads or threads_of(args.jobs)
        with alone_in(study.root):
            check_unchanged(runs, args.changed)
            print(cost(runs))
            if 'mlflow' in (args.watch or []):
                make_experiment(watched.visualizer.vis_backends)
            launcher = (
                RayLauncher(threads, args.gpus, options)
                if args.launcher == 'ray'
                else LocalLauncher(threads, args.threads is None, options)
            )
            execution = Execution(study, runs, launcher, args.jobs, args.changed)
            execution.run()
            if args.changed == 'stop':  # searches may have found other weights than runs were made with
                check_unchanged(runs, args.changed)
        failed = execution.failed
    report(study, args.changed == 'keep')
    if failed:
        for run, reason in failed.items():
            print(f'{run.name}: {reason} ({run.folder / "log.txt"})', file=sys.stderr)
        raise UserError(f'{len(failed)} of {len(runs)} runs failed, see above; the same command tries them again')


if __name__ == '__main__':
    with one_line_errors('stopped; the same command continues'):
        main()
