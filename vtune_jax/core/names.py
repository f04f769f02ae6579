"""The one rule for every name that becomes a path, a table cell or HTML. Loads nothing: reading processes import it."""

import re

NAME_CHARACTERS, LONGEST_NAME = "letters (a to z), digits, '_', '-' and '.'", 64
"""What names of experiments, domains and arms are made of; they become folders, file names, table cells and HTML."""


def assert_name(**values: str) -> None:
    """Refuses what cannot name a file anywhere: see `NAME_CHARACTERS`; the first is a letter or digit.

    Raises:
        ValueError: naming argument and value, of which at most the first characters are shown.
    """
    for name, value in values.items():
        if len(value) > LONGEST_NAME:
            raise ValueError(
                f"{name} must have at most {LONGEST_NAME} characters, got {len(value)}: {value[:16]!r} and on."
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise ValueError(f"{name} must be {NAME_CHARACTERS}, the first a letter or digit, got {value!r}.")


def name_from(words: str) -> str:
    """The nearest name that `assert_name` accepts: other characters become '-'."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", words).lstrip("-_.")[:LONGEST_NAME] or "experiment"
