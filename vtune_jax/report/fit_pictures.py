"""Still pictures of fitted laws."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtune_jax.report.style import PALETTE as COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Sequence[float]]
"""One row of numbers per domain."""
_MOST_COLUMNS = 4


def save_curves(
    path: Path,
    *,
    names: Sequence[str],
    tokens: Rows,
    losses: Rows,
    along: Sequence[float],
    middle: Rows,
    lower: Rows,
    upper: Rows,
    target: float | None,
    level: float,
    abscissa: str = "tokens",
) -> None:
    """One panel per domain: points, prediction, its interval, and the target if there is one.

    Args:
        path: of the picture.
        names: of the domains.
        tokens: of each point.
        losses: NaN where there is no point.
        along: where the prediction is drawn.
        middle: the prediction, [domains][places].
        lower: of the interval.
        upper: of the interval.
        target: tokens of the prediction asked for; drawn at the end of `along`.
        level: of the interval.
        abscissa: what the points are drawn over.
    """
    figure, panels = _panels(len(names))
    for place, (name, axes) in enumerate(zip(names, panels, strict=True)):
        axes.fill_between(along, lower[place], upper[place], color=COLOURS[0], alpha=0.18, lw=0, label=f"{level:.0%}")
        axes.plot(along, middle[place], color=COLOURS[0], lw=2, label="prediction")
        axes.plot(tokens[place], losses[place], "o", color="#333333", ms=4, label="points")
        if target is not None:
            bars = [[middle[place][-1] - lower[place][-1]], [upper[place][-1] - middle[place][-1]]]
            if all(math.isfinite(bar[0]) for bar in bars):
                axes.errorbar([along[-1]], [middle[place][-1]], yerr=bars, color=COLOURS[2], capsize=4)
            axes.plot([along[-1]], [middle[place][-1]], "D", color=COLOURS[2], ms=6, label="target")
        seen = [loss for loss in losses[place] if math.isfinite(loss)]
        room = 0.25 * (max(seen) - min(min(seen), min(middle[place])))
        axes.set_ylim(min(min(seen), min(middle[place])) - room, max(seen) + room or None)
        axes.set(xscale="log", title=name, xlabel=abscissa)
    panels[0].set_ylabel("nats per token")
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def save_residuals(path: Path, *, names: Sequence[str], predicted: Rows, losses: Rows) -> None:
    """One panel per domain: how far each measured loss lies from the fitted one, in per cent."""
    figure, panels = _panels(len(names))
    for place, (name, axes) in enumerate(zip(names, panels, strict=True)):
        off = [100 * (loss / fit - 1) for loss, fit in zip(losses[place], predicted[place], strict=True)]
        axes.plot(predicted[place], off, "o", color=COLOURS[0], ms=4, alpha=0.7)
        axes.axhline(0, color="#333333", lw=0.8)
        axes.set(title=name, xlabel="fitted loss, nats per token")
    panels[0].set_ylabel("measured over fitted, %")
    figure.savefig(path)


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    columns = min(count, _MOST_COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.2, 3.4 * columns), 3.2 * rows), dpi=120, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    for axes in panels[:count]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]
