"""One still picture of an experiment, for a README or a slide."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from vtune_jax.machine.files import written_whole
from vtune_jax.report.results import Results
from vtune_jax.report.style import AXIS_COLOUR, BETTER_COLOUR, PALETTE, WORSE_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_picture(results: Results, path: Path) -> None:
    """Three panels for the first arm whose weights move: weights, remaining fractions, final differences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), dpi=130, layout="constrained")
    weights, remaining, difference = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 0.9))
    arm = (results.challengers or list(results.arms.values()))[0]
    tokens = [row.tokens / 1e3 for row in arm.updates]
    for index, name in enumerate(results.domains):
        colour = PALETTE[index % len(PALETTE)]
        shares = [100 * row.weights[index] for row in arm.updates]
        weights.step(tokens, shares, where="post", color=colour, label=name, lw=2)
        weights.axhline(shares[0], color=colour, lw=0.8, ls=":")
        left = [math.nan if (share := row.remaining[index]) is None else 100 * share for row in arm.updates]
        remaining.plot(tokens, left, color=colour, lw=2)
    weights.set(title=f"Weights under {arm.name} (prior dotted)", ylabel="% of the batch", ylim=(0, None))
    weights.legend(fontsize=8, ncols=2, frameon=False)
    remaining.axhline(0, color=AXIS_COLOUR, lw=0.8, ls="--")
    remaining.set(title="Remaining way to the target loss", ylabel="%")
    for axes in (weights, remaining):
        axes.set_xlabel("training tokens (thousands)")
    _differences(results, difference)
    for axes in (weights, remaining, difference):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    with written_whole(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def _differences(results: Results, axes: "Axes") -> None:
    control = results.control
    if control is None or not results.challengers:
        axes.set_axis_off()
        return
    arm = results.challengers[0]
    pairs = zip(arm.final.heldout_loss, control.final.heldout_loss, strict=True)
    values = [math.nan if a is None or b is None else a - b for a, b in pairs]
    colours = [BETTER_COLOUR if value < 0 else WORSE_COLOUR for value in values]
    axes.barh(list(results.domains), values, color=colours)
    axes.axvline(0, color=AXIS_COLOUR, lw=0.8)
    axes.invert_yaxis()
    axes.set(title=f"Final loss, {arm.name} − {control.name}", xlabel="nats per token; left is better")
