"""The final table in the terminal."""

from typing import TYPE_CHECKING

from vtune_jax.report.results import Results
from vtune_jax.report.words import table, verdict_sentence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def render_table(results: Results, console: "Console") -> None:
    """Prints the final table and the verdict; the table in two parts where the terminal is too narrow."""
    header, _ = table(results)
    title = f"{results.experiment}: held-out loss, nats per token"
    whole = _drawn(results, title, list(range(len(header))))
    if console.measure(whole, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(whole)
    else:
        losses = len(header) - 2 * len(results.arms)
        console.print(_drawn(results, title, list(range(losses))))
        console.print(_drawn(results, "way to go and epochs", [0, *range(losses, len(header))]))
    console.print(verdict_sentence(results), highlight=False)
    console.print("One seed is no evidence: repeat with other seeds before believing a difference.", style="dim")


def _drawn(results: Results, title: str, columns: list[int]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    header, rows = table(results)
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for column in columns:
        # The label of an arm on the first line, the quantity on the second.
        title_of_column = header[column].replace(" ", "\n", 1) if column else header[column]
        drawn.add_column(title_of_column, justify="right" if column else "left", overflow="fold", no_wrap=not column)
    for index, row in enumerate(rows):
        cells = [row[column] for column in columns]
        if any(cells[1:]):
            drawn.add_row(*cells, end_section=index == len(results.domains) - 1)
    return drawn
