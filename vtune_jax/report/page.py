"""The report as one HTML file that opens offline; its words and tables are in `templates/`."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vtune_jax.machine.files import write_whole
from vtune_jax.report import style, words
from vtune_jax.report.results import Results

if TYPE_CHECKING:
    from jinja2 import Environment

_PLOTLY_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}


def write_page(results: Results, path: Path) -> None:
    """Writes the report; figures are interactive, their library is part of the file."""
    write_whole(path, page(results))


def page(results: Results) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    header, rows = words.table(results)
    return (
        environment()
        .get_template("page.html")
        .render(
            results=results,
            verdict=words.verdict_sentence(results),
            header=header,
            rows=rows,
            figures=_figures(results),
            facts=words.facts(results),
            style=style,
            plotly=get_plotlyjs(),
        )
    )


@cache
def environment() -> "Environment":
    """Templates of the report. Values are escaped unless a template marks them `safe`; a missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("vtune_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": words.number, "count": words.count, "share": words.share}
    return made


def _figures(results: Results) -> dict[str, str]:
    """The figures as HTML, by the name that is also the element's id."""
    from vtune_jax.report import figures

    drawn = {
        "weights": figures.weights(results),
        "losses": figures.losses(results),
        "remaining": figures.remaining(results),
        "reading": figures.reading(results),
        "fits": figures.fits(results),
        "training": figures.training(results),
    }
    return {
        name: figure.to_html(full_html=False, include_plotlyjs=False, config=_PLOTLY_CONFIG, div_id=name)
        for name, figure in drawn.items()
    }
