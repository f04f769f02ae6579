"""Still pictures of fitted laws."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtune_jax.errors import UserError
from vtune_jax.machine.files import written_whole
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
        tokens: abscissa of each point, [domains][points].
        losses: [domains][points], NaN where there is no point.
        along: abscissae of the prediction.
        middle: the prediction, [domains][places].
        lower: of the interval, likewise.
        upper: of the interval, likewise.
        target: abscissa of the target, the end of `along`; None: no target is drawn.
        level: of the interval.
        abscissa: name of the horizontal axis.
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
        measured = [loss for loss in losses[place] if math.isfinite(loss)]
        lowest, highest = min(*measured, *middle[place]), max(measured)
        margin = 0.25 * (highest - lowest)
        axes.set_ylim(lowest - margin, highest + margin or None)
        axes.set(xscale="log", title=name, xlabel=abscissa)
    panels[0].set_ylabel("nats per token")
    panels[0].legend(fontsize=8, frameon=False)
    _save(figure, path)


def save_residuals(path: Path, *, names: Sequence[str], predicted: Rows, losses: Rows) -> None:
    """One panel per domain: by how many per cent each measured loss differs from the fitted loss."""
    figure, panels = _panels(len(names))
    for place, (name, axes) in enumerate(zip(names, panels, strict=True)):
        excess = [100 * (loss / fit - 1) for loss, fit in zip(losses[place], predicted[place], strict=True)]
        axes.plot(predicted[place], excess, "o", color=COLOURS[0], ms=4, alpha=0.7)
        axes.axhline(0, color="#333333", lw=0.8)
        axes.set(title=name, xlabel="fitted loss, nats per token")
    panels[0].set_ylabel("measured over fitted, %")
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    format = path.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if format not in known:
        raise UserError(f"cannot draw a picture of kind '.{format}'", f"use one of {', '.join(sorted(known))}")
    with written_whole(path) as file:
        figure.savefig(file, format=format)


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
