"""CSV files as programs and spreadsheets write them: delimiters, decimal commas, missing values, encodings."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from vtune_jax.errors import UserError

DELIMITERS = (",", ";", "\t")
MISSING = ("", "nan", "na", "n/a", "#n/a", "-", "null", "none")
_GROUPS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_POINTED_GROUPS = re.compile(r"[+-]?\d{1,3}(\.\d{3}){2,}|[+-]?\d{1,3}(\.\d{3})+,\d*")


class Sheet(NamedTuple):
    """The cells of a file, stripped."""

    header: list[str]
    rows: list[tuple[int, list[str]]]  # line number and cells, without lines that are blank or begin with '#'
    decimal_comma: bool  # whether a comma may stand for the decimal point


def read_sheet(path: Path) -> Sheet:
    """Reads a file whose delimiter, of `DELIMITERS`, is the one that its header has most of.

    Raises:
        UserError: it cannot be read, is no text, is empty, or has a line with more or fewer cells than the header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})", "give the path of a CSV file") from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason})", "give a CSV file") from error
    # Lines end where CSV says, not at the line separators of Unicode. Comments stay as blank lines, to be counted.
    lines = ["\n" if line.lstrip().startswith("#") else line for line in io.StringIO(text, newline="")]
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    reader, rows = csv.reader(lines, delimiter=delimiter), []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file ({error})", "mend its quotes") from error
    if not rows:
        raise UserError(f"{path} is empty", "give a CSV file with a header")
    header = rows[0][1]
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} values for {len(header)} columns", "mend or remove the line"
            )
    return Sheet(header, rows[1:], decimal_comma=delimiter != ",")


def parse_number(text: str, *, decimal_comma: bool) -> float:
    """The number that a cell holds; NaN for `MISSING` and for infinities.

    Thousands may be grouped, `1,000,000.5` or, with a decimal comma, `1.000.000,5`.

    Raises:
        ValueError: it holds something else.
    """
    if text.lower() in MISSING:
        return float("nan")
    if decimal_comma and _POINTED_GROUPS.fullmatch(text):
        text = text.replace(".", "").replace(",", ".")
    elif decimal_comma and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    elif _GROUPS.fullmatch(text):
        text = text.replace(",", "")
    value = float(text)
    return value if abs(value) < float("inf") else float("nan")
