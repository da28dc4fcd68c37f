"""Tables and figures of a study."""

import csv
import io
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kd_plugins.errors import UserError
from kd_plugins.studies.checks import TEACHER_SEED
from kd_plugins.studies.data import data_options
from kd_plugins.studies.figures import figures
from kd_plugins.studies.plan import Study
from kd_plugins.studies.results import Gain, Result, centre_of, gains, result_of, shown
from kd_plugins.studies.run import Run
from kd_plugins.studies.search import SEARCH_SEED
from kd_plugins.utils.files import write_text


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the values of the finished seeds, and how many are planned."""

    values: tuple[float, ...]
    planned: int
    reference: str = ''
    median: bool = False

    @property
    def centre(self) -> float | None:
        """Mean, or median where the study says so."""
        if not self.values:
            return None
        return centre_of('median' if self.median else 'mean')(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (n - 1); None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Grid:
    """One table: ``cells[row][column]``."""

    title: str
    rows: list[str]
    columns: list[str]
    cells: Sequence[Sequence[Cell | None]]
    marked: set[tuple[int, int]]  # worse than the baseline
    best: set[tuple[int, int]]


def references(study: Study) -> dict[tuple[str, str, str], str]:
    """Return published values by network, corruption and method.

    Each reference has a ``table`` as text: one method a line, columns separated by tabs or two blanks, and named in the
    first line; ``-`` stands for none. Beside it, ``network`` or ``corruption`` gives what is the same for all columns.

    Raises:
        UserError: A reference has no table, or lines of different numbers of columns.
    """
    found = {}
    for reference in study.options['references']:
        if (
            not isinstance(reference, Mapping)
            or not isinstance(reference.get('table'), str)
            or (set(reference) - {'table', 'network', 'corruption'})
            or not reference['table'].strip()
        ):
            raise UserError(
                f'references: {reference!r} is no published table; expected dict(network=..., table=...), or '
                'with corruption in place of network, the table as text'
            )
        header, *lines = [re.split(r'\t| {2,}', x.strip()) for x in reference['table'].splitlines() if x.strip()]
        for method, *values in lines:
            if len(values) != len(header) - 1:
                raise UserError(f"references: line '{method}' has {len(values)} values for {len(header) - 1} columns")
            for column, value in zip(header[1:], values, strict=True):
                network, corruption = reference.get('network', column), reference.get('corruption', column)
                if value != '-':
                    found[network, corruption, method] = re.sub(r'\s*±\s*', ' ± ', value)
    return found


def grids(study: Study, results: dict[Run, Result]) -> list[Grid]:
    """Return the study's tables.

    Columns are the networks, one table for each corruption; or the other way round, with one network or where the study
    says so.
    """
    options = study.options
    networks, corruptions = list(options['networks']), list(options['corruptions'])
    by = options['columns'] or ('corruption' if len(networks) == 1 else 'network')
    published = references(study)
    baseline = options['baseline'] or next(iter(options['methods']))
    values: dict[tuple[str, str, str], list[Run]] = {}
    for run in study.students:
        values.setdefault((run.network, run.corruption, run.method), []).append(run)

    def cell(network: str, corruption: str, method: str) -> Cell:
        runs = values[network, corruption, method]
        return Cell(
            tuple(results[run].last for run in runs if run in results),
            len(runs),
            published.get((network, corruption, method), ''),
            options['average'] == 'median',
        )

    tables = []
    for outer in corruptions if by == 'network' else networks:
        keys = [(x, outer) if by == 'network' else (outer, x) for x in (networks if by == 'network' else corruptions)]
        rows = list(options['methods'])
        own = [[cell(*key, method) for key in keys] for method in rows]
        cells: list[Sequence[Cell | None]] = [*own]
        marked, best = set(), set()
        better = (lambda a, b: a < b) if options['error'] else (lambda a, b: a > b)
        for c in range(len(keys)):
            column = [(r, centre) for r, row in enumerate(own) if (centre := row[c].centre) is not None]
            if column:
                top = (min if options['error'] else max)(value for _, value in column)
                best |= {(r, c) for r, value in column if value == top}
            base = dict(column).get(rows.index(baseline))
            if base is not None:
                marked |= {(r, c) for r, value in column if better(base, value)}
        if study.teachers:
            rows.append('Teacher')
            cells.append([_teacher(study, results, *key, published) for key in keys])
        others = corruptions if by == 'network' else networks
        title = options['title'] or study.name
        tables.append(
            Grid(
                f'{title}, {outer}' if len(others) > 1 else title,
                rows,
                networks if by == 'network' else corruptions,
                cells,
                marked,
                best,
            )
        )
    return tables


def _teacher(
    study: Study,
    results: dict[Run, Result],
    network: str,
    corruption: str,
    published: dict[tuple[str, str, str], str],
) -> Cell | None:
    runs = {
        needed
        for run in study.students
        if (run.network, run.corruption) == (network, corruption)
        for needed in run.needs
        if needed.part == 'teacher'
    }
    if not runs:
        return None
    return Cell(
        tuple(results[run].last for run in sorted(runs, key=lambda run: run.seed) if run in results),
        len(runs),
        published.get((network, corruption, 'Teacher'), ''),
        study.options['average'] == 'median',
    )


def plain(cell: Cell | None, planned: int) -> str:
    """Return a cell as text: ``centre ± spread``; how many values, where not all planned ones."""
    if cell is None:
        return ''
    missing = cell.planned - len(cell.values)
    if cell.centre is None:
        text = f'— ({missing} missing)'
    else:
        text = f'{cell.centre:.2f}' + (f' ± {cell.spread:.2f}' if cell.spread is not None else '')
        if missing:
            text += f' (n={len(cell.values)}, {missing} missing)'
        elif cell.planned != planned:
            text += f' (n={cell.planned})'
    return text


def caption(study: Study) -> str:
    """Describe the values of the tables."""
    options = study.options
    what = f'{options["metric"]}, error (%)' if options['error'] else f'{options["metric"]} (%)'
    parts = [
        f'{what} after the last epoch, on the test set',
        f'{options["average"]} ± sample standard deviation over n = {len(options["seeds"])} seeds'
        if len(options['seeds']) > 1
        else 'one seed (n = 1)',
        'bold: the best of a column; ↓: worse than ' + (options['baseline'] or next(iter(options['methods']))),
    ]
    if study.teachers:
        each, seed = (
            ('each seed', f'{TEACHER_SEED} + that')
            if options['teacher_seeds'] == 'each'
            else ('all seeds', TEACHER_SEED + options['seeds'][0])
        )
        data = 'clean data' if options['teacher_data'] == 'clean' else "the student's own, also where corrupted"
        parts.append(f'one teacher for {each}, of seed {seed}, trained on {data}')
    parts += [f'{name}: {stages}' for name, config in options['methods'].items() if (stages := _stages(config))]
    if options['validation']:
        parts.append(f'best epochs, in runs.csv: chosen on {options["validation"]["size"]} training images held out')
    if any(map(data_options, options['corruptions'].values())):
        parts.append('the corrupted data are the same for all methods and seeds')
    if options['references']:
        parts.append('in brackets: the published value')
    if made := _versions(study):
        parts.append(f'made by several versions: {made}')
    return '; '.join(parts) + '.' + (f' {options["notes"]}' if options['notes'] else '')


def _versions(study: Study) -> str:
    """Name the versions by which the finished runs were made, where there are several."""
    counts: Counter[str] = Counter()
    for run in study.runs:
        if run.finished:
            used = [session['versions'] for session in run.sessions]
            counts.update({f'{x.get("commit", "unknown"):.7}, torch {x.get("torch", "unknown")}' for x in used})
    several = [f'{name} ({count} run{"s" * (count > 1)})' for name, count in counts.items()]
    return ' and '.join(several) if len(several) > 1 else ''


def _stages(config: Mapping[str, Any]) -> str:
    """Describe the stages of a method that has two."""
    if 'first' not in config:
        return ''
    first = config['first'] if isinstance(config['first'], str) else _stage(config['first'])
    return f'first {first}, then {_stage(config)}'


def _stage(config: Mapping[str, Any]) -> str:
    terms = [term if isinstance(term, str) else term['name'] for term in config.get('terms', [])]
    task = ['the task'] if config.get('hook', {}).get('task', True) in (True, 'train') else []
    return ' + '.join([*task, *terms, *([config['wrap']['type']] if 'wrap' in config else [])])


def markdown(study: Study, tables: Sequence[Grid]) -> str:
    """Return the tables in Markdown."""
    planned = len(study.options['seeds'])
    blocks = []
    for grid in tables:
        lines = [f'**{grid.title}**', '', f'| | {" | ".join(grid.columns)} |', '|---' * (len(grid.columns) + 1) + '|']
        for r, row in enumerate(grid.rows):
            fields = []
            for c, cell in enumerate(grid.cells[r]):
                text = plain(cell, planned)
                text = f'**{text}**' if (r, c) in grid.best else text
                text += ' ↓' if (r, c) in grid.marked else ''
                fields.append(text + (f' [{cell.reference}]' if cell is not None and cell.reference else ''))
            lines.append(f'| {row} | {" | ".join(fields)} |')
        blocks.append('\n'.join(lines))
    blocks.append(caption(study))
    if study.searches:
        header, *rows = (f'| {" | ".join(row)} |' for row in search_table(study))
        blocks += ['\n'.join([header, '|---' * 6 + '|', *rows]), search_caption(study)]
    return '\n\n'.join(blocks) + '\n'


_LATEX = {
    '±': r'$\pm$',
    '—': '---',
    '%': r'\%',
    '_': r'\_',
    '&': r'\&',
    '#': r'\#',
    '$': r'\$',
    '{': r'\{',
    '}': r'\}',
    '^': r'\textasciicircum{}',
    '~': r'\textasciitilde{}',
    '\\': r'\textbackslash{}',
    'α': r'$\alpha$',
    '→': r'$\rightarrow$',
    '↓': r'$\downarrow$',
    'σ': r'$\sigma$',
    'γ': r'$\gamma$',
    '<': r'$<$',
    '>': r'$>$',
}


def _tex(text: str) -> str:
    return ''.join(_LATEX.get(x, x) for x in text)


def latex(study: Study, tables: Sequence[Grid]) -> str:
    """Return the tables in LaTeX, for the packages booktabs and xcolor."""
    planned = len(study.options['seeds'])
    blocks = []
    for grid in tables:
        lines = [
            r'\begin{table}',
            r'\centering',
            rf'\caption{{{_tex(grid.title)}. {_tex(caption(study))}}}',
            rf'\begin{{tabular}}{{l{"c" * len(grid.columns)}}}',
            r'\toprule',
            ' & '.join(['', *map(_tex, grid.columns)]).strip() + r' \\',
            r'\midrule',
        ]
        for r, row in enumerate(grid.rows):
            fields = [_tex(row)]
            for c, cell in enumerate(grid.cells[r]):
                text = _tex(plain(cell, planned))
                text = rf'\textbf{{{text}}}' if (r, c) in grid.best else text
                text = rf'\textcolor{{blue}}{{{text}}}$\downarrow$' if (r, c) in grid.marked else text
                if cell is not None and cell.reference:
                    text += rf' {{\scriptsize[{_tex(cell.reference)}]}}'
                fields.append(text)
            if row == 'Teacher':
                lines.append(r'\midrule')
            lines.append(' & '.join(fields) + r' \\')
        blocks.append('\n'.join([*lines, r'\bottomrule', r'\end{tabular}', r'\end{table}']))
    return '\n\n'.join(blocks) + '\n'


def long_form(study: Study, results: dict[Run, Result]) -> str:
    """Return the finished runs as CSV, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['part', 'network', 'corruption', 'method', 'seed', 'last', 'best', 'seconds', 'folder'])
    for run, result in results.items():
        best = '' if result.best is None else f'{result.best:.4f}'
        writer.writerow(
            [
                run.part,
                run.network,
                run.corruption,
                run.method,
                run.seed,
                f'{result.last:.4f}',
                best,
                f'{result.seconds:.1f}',
                run.folder.as_posix(),
            ]
        )
    return text.getvalue()


def tidy(study: Study, tables: Sequence[Grid]) -> str:
    """Return the cells of the tables as CSV, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(
        ['table', 'method', 'column', 'n', study.options['average'], 'std', 'published', 'best', 'worse than baseline']
    )
    for grid in tables:
        for r, row in enumerate(grid.rows):
            for c, (column, cell) in enumerate(zip(grid.columns, grid.cells[r], strict=True)):
                if cell is not None:
                    numbers = ['' if x is None else f'{x:.4f}' for x in (cell.centre, cell.spread)]
                    writer.writerow(
                        [
                            grid.title,
                            row,
                            column,
                            len(cell.values),
                            *numbers,
                            cell.reference,
                            (r, c) in grid.best,
                            (r, c) in grid.marked,
                        ]
                    )
    return text.getvalue()


def searched(study: Study) -> str:
    """Return the scores of the searches as CSV, one a line; that of a weight whose loss diverged is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['network', 'corruption', 'method', 'weight', 'epoch', 'score', 'found'])
    for search in study.searches:
        for epoch, scores in zip(search.epochs, search.rounds, strict=False):
            for weight, score in scores.items():
                run = search.runs[weight]
                value = '' if score is None or score == -inf else f'{shown(study, score):.4f}'
                row = [run.network, run.corruption, run.method, f'{weight:g}', epoch, value, weight == search.best]
                writer.writerow(row)
    return text.getvalue()


def search_table(study: Study) -> list[list[str]]:
    """Return the searches as a table, its header first: what each has found, and what that has cost."""

    def scored(scores: Mapping[float, float | None]) -> str:
        values = {None: 'missing', -inf: 'diverged'}
        return ', '.join(
            f'{weight:g}: ' + (values.get(score) or f'{shown(study, score or 0.0):.1f}')
            for weight, score in scores.items()
        )

    rows = [['search', 'found', 'default', 'weight: score on the held-out part', 'epochs', 'seconds']]
    for search in study.searches:
        run = next(iter(search.runs.values()))
        rounds = zip(search.epochs, search.rounds, strict=False)
        rows.append(
            [
                f'{run.network} / {run.corruption} / {run.method}',
                '—' if search.best is None else f'weight={search.best:g}',
                f'{search.default:g}',
                '; '.join(f'epoch {epoch}: {scored(scores)}' for epoch, scores in rounds),
                f'{sum(run.epoch for run in search.runs.values())} of {search.cost}',
                f'{sum(run.seconds for run in search.runs.values()):.0f}',
            ]
        )
    return rows


def search_caption(study: Study) -> str:
    """Describe the values of the table of searches."""
    given = any('given' in teacher for teacher in study.options['teachers'].values())
    return (
        f'Searches: {study.options["metric"]} on {study.options["validation"]["size"]} training images held out, never '
        f'on the test set; one run for each weight, of seed {study.options["seeds"][0] + SEARCH_SEED}.'
        + ' A given teacher may have learned from these images, which favours large weights.'
        * given
    )


def paired(found: Sequence[Gain]) -> str:
    """Return the gains as CSV, one method a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['network', 'corruption', 'method', 'n', 'gain', 'std', 'p'])
    for gain in found:
        p = '' if gain.p is None else f'{gain.p:.4g}'
        writer.writerow(
            [
                gain.network,
                gain.corruption,
                gain.method,
                len(gain.values),
                f'{gain.mean:.4f}',
                f'{gain.spread:.4f}' if len(gain.values) > 1 else '',
                p,
            ]
        )
    return text.getvalue()


def show(study: Study, tables: Sequence[Grid], console: Console) -> None:
    """Print the tables."""
    for grid in tables:
        table = Table('', *map(escape, grid.columns), title=escape(grid.title))
        for r, row in enumerate(grid.rows):
            fields = []
            for c, cell in enumerate(grid.cells[r]):
                text = escape(plain(cell, len(study.options['seeds'])))
                text = f'[bold]{text}[/bold]' if (r, c) in grid.best else text
                text += ' ↓' if (r, c) in grid.marked else ''
                fields.append(text + (f' \\[{cell.reference}]' if cell is not None and cell.reference else ''))
            table.add_row(escape(row), *fields)
        console.print(table)
    console.print(caption(study), markup=False, highlight=False)
    if study.searches:
        header, *rows = search_table(study)
        table = Table(*header)
        for fields in rows:
            table.add_row(*map(escape, fields))
        console.print(table)
        console.print(search_caption(study), markup=False, highlight=False)


def _written(root: Path, files: dict[str, str]) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(root / name, text)
        yield root / name


def report(study: Study, keep_changed: bool) -> None:
    """Print the tables, and write them and the figures into the study's folder.

    Args:
        study: The study.
        keep_changed: Include runs that were made with another config than the study now has; else they are missing.
    """
    results = {
        run: result
        for run in study.runs
        if run.part not in ('first', 'search')
        and (keep_changed or not (run.changed or run.waits))
        and (result := result_of(study, run)) is not None
    }
    tables = grids(study, results)
    console = Console(width=max(120, 22 * (1 + len(tables[0].columns)), Console().width), soft_wrap=True)
    show(study, tables, console)
    for path in _written(
        study.root,
        {
            'table.md': markdown(study, tables),
            'table.tex': latex(study, tables),
            'table.csv': tidy(study, tables),
            'runs.csv': long_form(study, results),
            'gains.csv': paired(found := gains(study, results)),
        }
        | ({'search.csv': searched(study)} if study.searches else {}),
    ):
        console.print(path.as_posix(), highlight=False)
    for path in figures(study, results, found):
        console.print(path.as_posix(), highlight=False)
