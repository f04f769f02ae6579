"""The final table in the terminal."""

from typing import TYPE_CHECKING

from vtune_jax.report.results import Results, table, verdict_sentence

if TYPE_CHECKING:
    from rich.console import Console


def render_table(results: Results, console: "Console") -> None:
    """Prints the final table and what it says."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    header, rows = table(results)
    shown = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"{results.experiment}: held-out loss, nats per token",
        title_justify="left",
    )
    for index, column in enumerate(header):
        shown.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for index, row in enumerate(rows):
        shown.add_row(*row, end_section=index == len(results.domains) - 1)
    console.print(shown)
    console.print(verdict_sentence(results), highlight=False)
    console.print("One seed is no evidence: repeat with other seeds before believing a difference.", style="dim")
