"""Draw the figures of the pages from the tables that stand on them.

    python .pages/draw.py

losses.svg      speed of the losses over their literal forms, from tools/benchmarks/README.md
corruption.svg  accuracy on clean, noisy and imbalanced training data, from configs/studies/README.md
gains.svg       what each method gains over the baseline, beside the poster's, from configs/studies/README.md
curves.svg      each method's accuracy after each epoch, from configs/studies/README.md

The other pictures: distillation.svg is drawn by hand, tsne.png by the command in configs/voc_mini/README.md.
"""

import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PICTURES = Path(__file__).parent
# Okabe and Ito's colours, which the colour-blind tell apart too.
COLOURS = ['#7f7f7f', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9']
METHODS = ['Baseline', 'Hinton', 'FitNet', 'AT', 'SP', 'RKD-A', 'NST poly']


def table(page: str, first: str) -> list[list[str]]:
    """Return the rows of the page's table whose first heading is given."""
    lines = (ROOT / page).read_text(encoding='utf-8').splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f'| {first} |'))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            break
        rows.append([cell.strip(' *') for cell in line.strip('|').split('|')])
    return rows


def bars() -> list[tuple[str, float]]:
    """Return each loss and shape with its speed over the literal form's."""
    found = []
    for name, _, speeds, *_ in table('tools/benchmarks/README.md', 'loss, shape'):
        numbers = [float(x) for x in speeds.split(',')] if re.fullmatch(r'[\d., ]+', speeds) else []
        loss, _, rest = name.partition(' ') if name.startswith('NST') else name.partition(', ')
        if loss == 'NST':  # three kernels of one shape
            kernels, shape = rest.rsplit(', ', 1)
            names = [f'NST {kernel}, {shape}' for kernel in kernels.split(', ')]
        else:  # one loss on several shapes
            about = rest.split(', against')[0]
            names = [f'{loss}, {shape}' for shape in about.split('; ')]
        found += zip(names, numbers, strict=False)  # none where the literal form needs too much memory
    return found


def draw_losses() -> Figure:
    """Draw the speeds as bars on a logarithmic axis."""
    found = sorted(bars(), key=lambda x: x[1])
    figure = Figure((7.5, 0.24 * len(found) + 1), layout='constrained')
    axes = figure.subplots()
    axes.barh([name for name, _ in found], [speed - 1 for _, speed in found], left=1, color=COLOURS[1], height=0.7)
    for row, (_, speed) in enumerate(found):
        axes.text(speed * 1.06, row, f'{speed:g}×', va='center', fontsize=8)
    axes.axvline(1, color=COLOURS[0], linewidth=1)
    axes.set(
        xscale='log', xlim=(0.9, 600), xlabel="speed, in multiples of the literal form's (forward and backward, CPU)"
    )
    axes.set_xticks([1, 10, 100], ['1×', '10×', '100×'])
    axes.tick_params(axis='y', labelsize=8, length=0)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    return figure


def _panel(axes: Axes, rows: dict[str, list[str]], columns: tuple[int, int], ticks: tuple[str, str]) -> None:
    for method, colour in zip(METHODS, COLOURS, strict=True):
        values = [[float(x) for x in rows[method][column].split('±')] for column in columns]
        means, spreads = zip(*values, strict=True)
        axes.errorbar([0, 1], means, spreads, label=method, color=colour, marker='o', markersize=4, capsize=3)
    axes.set_xticks([0, 1], ticks)
    axes.set_xlim(-0.2, 1.2)
    axes.spines[['top', 'right']].set_visible(False)


def draw_corruption() -> Figure:
    """Draw each method's accuracy on clean data and under noise or imbalance, mean and standard deviation."""
    rows = {row[0]: row[1:] for row in table('configs/studies/README.md', 'method')}
    figure = Figure((10, 3.6), layout='constrained')
    axes = figure.subplots(1, 4)
    for number, network in enumerate(('ResNet-8', 'WRN-16-2')):
        noise, imbalance = axes[2 * number : 2 * number + 2]
        start = 3 * number
        _panel(noise, rows, (start, start + 1), ('σ = 0', 'σ = 0.4'))
        _panel(imbalance, rows, (start, start + 2), ('balanced', 'γ = 0.2'))
        noise.set(title=f'{network}, label noise')
        imbalance.set(title=f'{network}, imbalance')
    axes[0].set(ylabel='top-1 (%), three seeds')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(METHODS), frameon=False)
    return figure


def draw_gains() -> Figure:
    """Draw each method's gain over the baseline on all images, beside the poster's with its standard deviation."""
    rows = {
        row[0]: row[1:] for row in table('configs/studies/README.md', 'method | seed 0 | seed 1 | poster, five seeds')
    }
    published, teacher = rows.pop('Baseline')[2], next(x for x in rows if x.startswith('Teacher'))
    del rows[teacher]
    names = [*rows][::-1]
    figure = Figure((7.5, 0.24 * len(names) + 1), layout='constrained')
    axes = figure.subplots()
    for place, name in enumerate(names):
        gains = rows[name][3].replace('−', '-').split(',')
        for seed, (gain, marker) in enumerate(zip(gains, 'os', strict=True)):
            axes.plot(float(gain), place, marker, color=COLOURS[1], fillstyle='none', label=f'ten epochs, seed {seed}')
        if rows[name][2]:
            mean, spread = map(float, rows[name][2].split('±'))
            gain = mean - float(published.split('±')[0])
            axes.errorbar(gain, place, xerr=spread, fmt='D', color=COLOURS[2], capsize=3, label='poster, five seeds')
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color=COLOURS[0], linewidth=1)
    axes.set(xlabel="points of top-1 over the baseline's, ResNet-8, clean")
    axes.tick_params(axis='y', length=0)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    labelled = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(labelled.values(), labelled.keys(), frameon=False)
    return figure


def draw_curves() -> Figure:
    """Draw each method's accuracy after each epoch on all images, those of the other figures in colour."""
    rows = table('configs/studies/README.md', 'after epoch')
    figure = Figure((7.5, 4), layout='constrained')
    axes = figure.subplots()
    for name, *values in sorted(rows, key=lambda row: row[0] in METHODS):
        known = name in METHODS
        colour = COLOURS[METHODS.index(name)] if known else '#c9ced3'
        epochs = range(1, len(values) + 1)
        label = name if known else 'the others'
        axes.plot(epochs, [float(x) for x in values], color=colour, label=label, linewidth=1.6 if known else 1)
    axes.set(xlabel='epoch', ylabel='top-1 (%), ResNet-8, clean, seed 1', ylim=(30, 82))
    axes.spines[['top', 'right']].set_visible(False)
    labelled = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(labelled.values(), labelled.keys(), frameon=False, ncols=2, loc='lower right')
    return figure


def main() -> None:
    """Draw all of them; the same tables give the same bytes."""
    with matplotlib.rc_context({'svg.hashsalt': 'kd_plugins', 'svg.fonttype': 'none', 'font.size': 9}):
        figures = dict(losses=draw_losses, corruption=draw_corruption, gains=draw_gains, curves=draw_curves)
        for name, draw in figures.items():
            draw().savefig(PICTURES / f'{name}.svg', facecolor='#f7f9fb', metadata={'Date': None})


if __name__ == '__main__':
    main()
