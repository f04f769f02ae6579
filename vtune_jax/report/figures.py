"""The figures of the report: each takes results and returns an interactive plotly figure."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtune_jax.report.results import ArmResult, Column, Results, Update
from vtune_jax.report.style import FONT, INK, LAW_COLOUR, PALETTE, TARGET_COLOUR, colour_of

_COLUMNS = 3
_Shape = dict[str, Any]
_DASHED = {"color": TARGET_COLOUR, "dash": "dash", "width": 1.5}


def losses(results: Results) -> go.Figure:
    """Held-out loss of each domain over tokens, with its target and interval: one small picture per domain."""
    figure, targets = _grid(results.domains), results.targets
    shapes: list[_Shape] = []
    for index, (row, column) in enumerate(_cells(len(results.domains))):
        place = {"row": row, "col": column}
        for arm in results.arms.values():
            values = _over_updates(arm, lambda update: update.heldout_loss, index)
            figure.add_trace(_line(results, arm, values, show=index == 0), **place)
        lower, upper, target = targets.lower[index], targets.upper[index], targets.target[index]
        if lower is not None and upper is not None:
            band = {"type": "rect", "fillcolor": TARGET_COLOUR, "opacity": 0.12, "line": {"width": 0}}
            shapes.append({**band, **_across(index, lower, upper)})
        if target is not None:
            shapes.append({"type": "line", "line": _DASHED, **_across(index, target, target)})
    figure.update_layout(shapes=shapes)
    return _styled(figure, height=240 * math.ceil(len(results.domains) / _COLUMNS) + 80)


def remaining(results: Results) -> go.Figure:
    """Remaining fraction of each domain over tokens: one small picture per domain."""
    figure = _grid(results.domains)
    for index, (row, column) in enumerate(_cells(len(results.domains))):
        place = {"row": row, "col": column}
        for arm in results.arms.values():
            values = _over_updates(arm, lambda update: update.remaining, index)
            figure.add_trace(_line(results, arm, values, show=index == 0), **place)
    domains = range(len(results.domains))
    figure.update_layout(shapes=[{"type": "line", "line": _DASHED, **_across(index, 0, 0)} for index in domains])
    figure.update_yaxes(tickformat=".0%")
    return _styled(figure, height=240 * math.ceil(len(results.domains) / _COLUMNS) + 80)


def weights(results: Results) -> go.Figure:
    """Weights over tokens of every arm but the control, with the prior dotted."""
    arms = results.challengers or list(results.arms.values())
    figure = make_subplots(1, len(arms), subplot_titles=[arm.name for arm in arms], shared_yaxes=True)
    for place, arm in enumerate(arms, start=1):
        for index, name in enumerate(results.domains):
            colour = PALETTE[index % len(PALETTE)]
            values = [update.weights[index] for update in arm.updates]
            line = go.Scatter(
                x=_tokens(arm),
                y=values,
                name=name,
                mode="lines",
                line={"color": colour, "width": 2.5, "shape": "hv"},
                showlegend=place == 1,
                legendgroup=name,
            )
            prior = go.Scatter(
                x=[0, _tokens(arm)[-1]],
                y=[values[0]] * 2,
                mode="lines",
                line={"color": colour, "width": 1, "dash": "dot"},
                showlegend=False,
                legendgroup=name,
                hoverinfo="skip",
            )
            figure.add_trace(line, row=1, col=place)
            figure.add_trace(prior, row=1, col=place)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(title_text="training tokens")
    return _styled(figure, height=420)


def reading(results: Results) -> go.Figure:
    """Tokens read per domain and arm; the label is the number of epochs."""
    figure = go.Figure()
    for arm in results.arms.values():
        last = arm.updates[-1]
        figure.add_trace(
            go.Bar(
                x=list(results.domains),
                y=last.tokens_read,
                name=arm.name,
                marker_color=colour_of(results, arm),
                text=["" if epochs is None else f"{epochs:.2f}×" for epochs in last.epochs],
                textposition="outside",
                cliponaxis=False,
            )
        )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title_text="tokens read")
    return _styled(figure, height=380)


def fits(results: Results) -> go.Figure:
    """Losses of the proxies, the law's prediction along the real run, and the target with its interval."""
    figure = _grid(results.domains)
    targets, points = results.targets, results.targets.points
    for index, (row, column) in enumerate(_cells(len(results.domains))):
        place = {"row": row, "col": column}
        measured = [losses[index] for losses in points.loss]
        if targets.curve is not None:
            predicted = [losses[index] for losses in targets.curve.loss]
            along = targets.curve.tokens
            figure.add_trace(_plain_line(along, predicted, "law, along the real run", LAW_COLOUR, index == 0), **place)
        figure.add_trace(_markers(points.tokens, measured, "proxies", PALETTE[0], index == 0), **place)
        target = targets.target[index]
        lower, upper = targets.lower[index], targets.upper[index]
        bars: dict[str, Any] = {}
        if target is not None and lower is not None and upper is not None:
            bars = {"error_y": {"array": [upper - target], "arrayminus": [target - lower], "symmetric": False}}
        marker = _markers([targets.target_tokens], [target], "target", TARGET_COLOUR, index == 0)
        figure.add_trace(marker.update(bars), **place)
    figure.update_xaxes(type="log")
    return _styled(figure, height=240 * math.ceil(len(results.domains) / _COLUMNS) + 80)


def training(results: Results) -> go.Figure:
    """Training loss of every arm, smoothed over 10 steps."""
    figure = go.Figure()
    for arm in results.arms.values():
        raw = [row.loss for row in arm.train]
        smooth = [sum(raw[max(0, end - 10) : end]) / min(end, 10) for end in range(1, len(raw) + 1)]
        tokens = [row.tokens for row in arm.train]
        figure.add_trace(_plain_line(tokens, smooth, arm.name, colour_of(results, arm), True))
    figure.update_xaxes(title_text="training tokens")
    figure.update_yaxes(title_text="nats per token")
    return _styled(figure, height=320)


def _grid(names: Sequence[str]) -> go.Figure:
    rows = math.ceil(len(names) / _COLUMNS)
    gap = min(0.12, 0.3 / max(rows, 1))
    return make_subplots(rows, _COLUMNS, subplot_titles=list(names), vertical_spacing=gap, horizontal_spacing=0.07)


def _cells(count: int) -> Iterator[tuple[int, int]]:
    return ((index // _COLUMNS + 1, index % _COLUMNS + 1) for index in range(count))


def _tokens(arm: ArmResult) -> list[int]:
    return [update.tokens for update in arm.updates]


def _over_updates(arm: ArmResult, column: Callable[[Update], Column], index: int) -> list[float | None]:
    return [column(update)[index] for update in arm.updates]


def _across(index: int, lower: float, upper: float) -> _Shape:
    """Where a line or band across the picture of a domain lies.

    Plotly's own `add_hline` copies all shapes at each call, which takes 10 s for 50 domains.
    """
    axis = "" if index == 0 else str(index + 1)
    return {"x0": 0, "x1": 1, "xref": f"x{axis} domain", "y0": lower, "y1": upper, "yref": f"y{axis}"}


def _line(results: Results, arm: ArmResult, values: list[float | None], *, show: bool) -> go.Scatter:
    return _plain_line(_tokens(arm), values, arm.name, colour_of(results, arm), show)


def _plain_line(x: Sequence[float], y: Sequence[float | None], name: str, colour: str, show: bool) -> go.Scatter:
    return go.Scatter(
        x=list(x),
        y=list(y),
        name=name,
        legendgroup=name,
        showlegend=show,
        mode="lines",
        line={"color": colour, "width": 2},
    )


def _markers(x: Sequence[float], y: Sequence[float | None], name: str, colour: str, show: bool) -> go.Scatter:
    return go.Scatter(
        x=list(x),
        y=list(y),
        name=name,
        legendgroup=name,
        showlegend=show,
        mode="markers",
        marker={"color": colour, "size": 8},
    )


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 56, "r": 16, "t": 76, "b": 48},
        font={"family": FONT, "size": 13, "color": INK},
        legend={"orientation": "h", "yref": "container", "y": 0.99, "yanchor": "top", "x": 1, "xanchor": "right"},
        hovermode="x unified",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_annotations(font_size=13)
    return figure
