"""Pictures of a study: Dice against the number of labels, and two systems slice by slice."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from infnet_jax.evaluation.figures import BLUE, COLOURS, canvas


def label_curve(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], path: Path
) -> Path:
    """Draws a line a row of the study, with bars from the low to the high end of its intervals.

    Args:
      curves: title -> (labelled slices, mean, low, high), rising in the first.
      path: the PNG to write.
    """
    with canvas(path, width=6.4, height=4.2) as figure:
        ax = figure.subplots()
        for k, (colour, (title, points)) in enumerate(
            zip(cycle(COLOURS), curves.items(), strict=False)
        ):
            x, mean, low, high = np.array(points, float).T
            x = x * 1.015 ** (k - (len(curves) - 1) / 2)  # or the bars would hide each other
            ax.errorbar(
                x,
                mean,
                [mean - low, high - mean],
                color=colour,
                label=title,
                marker="o",
                markersize=5,
                capsize=3,
            )
        counts = sorted({round(point[0]) for points in curves.values() for point in points})
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.minorticks_off()
        ax.set(xlabel="labelled slices", ylabel="Dice, mean of 256 thresholds")
        ax.legend()
    return path


def scatter(pairs: Sequence[tuple[str, str, np.ndarray, np.ndarray]], path: Path) -> Path:
    """Draws a panel a comparison: each point is a slice, above the diagonal where the row gains.

    Args:
      pairs: (title of the reference, title of the row, Dice of each, [slices]).
      path: the PNG to write.
    """
    columns = min(4, len(pairs))
    lines = -(-len(pairs) // columns)
    with canvas(path, width=3.1 * columns, height=3.2 * lines) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(pairs) :]:
            ax.remove()
        for ax, (reference, title, theirs, ours) in zip(axes, pairs, strict=False):
            ax.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
            ax.scatter(theirs, ours, s=16, color=BLUE, alpha=0.6, linewidths=0)
            better = int((ours > theirs).sum())
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            ax.set(xlabel=reference, ylabel=title, title=f"{better} of {len(ours)} better")
    return path
