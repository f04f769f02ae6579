"""Tables in Markdown files that commands write, so that no figure in them is typed by hand."""

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def replace_block(path: Path, name: str, text: str) -> None:
    """Puts `text` between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: the file lacks these lines.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, opened, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{path} has no block '{name}'; add '{begin.strip()}' and '{end.strip()}'.")
    path.write_text(f"{before}{begin}{text}\n{end}{after}")
