"""The table of an ablation: each variant's scores over seeds, its cost, and whether it differs from the baseline."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import write_whole
from metrics.scores import printed
from metrics.statistics import Comparison, crossed_test

SECONDS = "s / epoch"  # time of training one epoch
TESTED = "CIDEr"  # the metric that is tested and drawn; like all of COCO's, a mean over images


class Run(NamedTuple):
    """What one seed of a variant came to on val.

    `measures` holds its scores, measures of diversity and `SECONDS` by name, `per_image` float64 [B] the images' CIDEr.
    """

    measures: Mapping[str, float]
    per_image: np.ndarray


class Row(NamedTuple):
    """One variant: its runs by seed, and its test against the baseline over the seeds that both have."""

    levels: tuple[str, ...]
    runs: dict[int, Run]
    test: Comparison | None

    def values(self, column: str) -> np.ndarray:
        """What each seed has in `column`, [S]; NaN where it has not, such as the metric of a head that it lacks."""
        return np.array([run.measures.get(column, np.nan) for run in self.runs.values()])


def compare(runs: Mapping[tuple[str, ...], dict[int, Run]]) -> list[Row]:
    """The rows of a table from each variant's runs by seed; the first variant is the baseline."""
    baseline, *others = runs
    rows = [Row(baseline, runs[baseline], None)]
    for levels in others:
        both = sorted(runs[baseline].keys() & runs[levels].keys())
        pair = ([runs[which][seed].per_image for seed in both] for which in (baseline, levels))
        comparable = both and len(runs[baseline][both[0]].per_image) > 1
        rows.append(Row(levels, runs[levels], crossed_test(*map(np.array, pair)) if comparable else None))
    return rows


def markdown(rows: Sequence[Row], factors: Sequence[str], columns: Sequence[str]) -> str:
    """The rows as a table in Markdown: shares x 100, mean and standard deviation over seeds."""
    head = [*factors, "seeds", *columns, "difference", "95 % interval", "p", SECONDS]
    lines = [head, ["---"] * len(factors) + ["---:"] * (len(head) - len(factors))]
    for row in rows:
        cells = [*row.levels, str(len(row.runs)), *(_spread(row, c) for c in columns)]
        if row.test:
            low, high = 100 * row.test.low, 100 * row.test.high
            cells += [
                f"{100 * row.test.difference:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{row.test.p:.3f}" if row.test.p >= 0.001 else "< 0.001",
            ]
        else:
            cells += ["", "", ""]
        lines.append([*cells, _spread(row, SECONDS)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_csv(path: Path, rows: Sequence[Row], factors: Sequence[str], columns: Sequence[str]) -> None:
    """The rows as CSV, numbers as they are: for each column its mean and standard deviation over seeds."""
    text = io.StringIO()
    writer = csv.writer(text)
    spread = [f"{column}{suffix}" for column in (*columns, SECONDS) for suffix in ("", " (std)")]
    writer.writerow([*factors, "seeds", *spread, "difference", "low", "high", "p"])
    for row in rows:
        values = [row.values(column) for column in (*columns, SECONDS)]
        numbers = [x for value in values for x in (value.mean(), value.std(ddof=1) if len(value) > 1 else "")]
        numbers = ["" if x != x else x for x in numbers]
        writer.writerow([*row.levels, len(row.runs), *numbers, *(row.test or ("", "", "", ""))])
    write_whole(path, text.getvalue())


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw each variant's CIDEr: a dot a seed, their mean, and the interval of its difference to the baseline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.1 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    base = 100 * rows[0].values(TESTED).mean()
    axes.axvline(base, color="0.6", linestyle="--", linewidth=1)
    for y, row in enumerate(rows):
        values = 100 * row.values(TESTED)
        axes.plot(values, [y] * len(values), "o", color="C0", markersize=4, alpha=0.55, zorder=3)
        axes.plot(values.mean(), y, "|", color="black", markersize=13, markeredgewidth=2, zorder=4)
        if row.test:
            interval = [base + 100 * row.test.low, base + 100 * row.test.high]
            axes.plot(interval, [y, y], color="C1", linewidth=3, alpha=0.6, solid_capstyle="butt", zorder=2)
    axes.set_yticks(range(len(rows)), [", ".join(row.levels) for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.6 / len(rows))
    axes.set_xlabel(f"{TESTED} x 100; dots: seeds, bar: mean, band: 95 % interval of the difference to the first row")
    axes.xaxis.label.set_fontsize(8)
    axes.set_title(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_whole(path, buffer.getvalue())


def _spread(row: Row, column: str) -> str:
    values = row.values(column)
    if np.isnan(values).all():
        return ""
    return printed(column, values.mean(), *([values.std(ddof=1)] if len(values) > 1 else []))
