"""What becomes of a document's text before it is counted and tokenised: messages joined, long texts cut."""

import re
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

_PLACES = (re.compile(r"\n(?:[ \t\r]*\n)+"), re.compile(r"\n"), re.compile(r"\s"))
"""Where a text may be cut, the best place first."""


def assert_turn(template: str) -> None:
    """Checks a template of a message.

    Raises:
        ValueError: it names no field, or asks for more than plain fields.
    """
    wanted = 'turn must name fields of a message in braces, as "{role}: {content}"'
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{wanted}, got {template!r} ({error})") from error
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(name.isidentifier() and not form and not kind for _, name, form, kind in parts if name is not None)
    if not names or not plain:
        raise ValueError(f"{wanted}, got {template!r}")


def joined_turns(turns: list[Any], template: str) -> str:
    """The text of a list of messages: the template filled for each, one after another.

    Raises:
        KeyError: a message lacks a field of the template, which is the error's argument.
        TypeError: a turn is no object.
    """
    names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    texts = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise TypeError(f"a turn is no object but {turn!r:.40}")
        # A missing value is an empty one: assistants' messages that only call a tool have no content.
        values = {name: "" if turn[name] is None else str(turn[name]) for name in names}
        texts.append(template.format(**values))
    return "".join(texts)


def example_turn(turn: Mapping[str, Any]) -> str:
    """A template for messages of this kind."""
    role = next((name for name in ("role", "from", "speaker", "author") if name in turn), None)
    content = next((name for name in ("content", "value", "text", "message") if name in turn), None)
    if role and content:
        return f"{{{role}}}: {{{content}}}\\n"
    return "".join(f"{{{name}}}\\n" for name in list(turn)[:2] if name.isidentifier()) or "{content}\\n"


def cut(text: str, most: int) -> Iterator[str]:
    """Pieces of at most so many bytes of UTF-8, in order, without line ends where they are cut.

    A piece ends at the last blank line that it may hold; where there is none in its second half at the last line end,
    then at the last white space, then wherever it is full. Pieces of white space alone are left out.
    """
    start, length = 0, len(text)
    while start < length:
        stop = _fitting(text, start, most)
        if stop < length:
            stop = _place(text, start, stop)
        piece = text[start:stop]
        if piece.strip():
            yield piece.strip("\n") if start or stop < length else piece
        start = stop


def _fitting(text: str, start: int, most: int) -> int:
    """The end of the longest stretch from `start` on that has at most so many bytes, of one character at least."""
    # A character has one to four bytes.
    stop = min(len(text), start + most)
    while stop > start + 1 and (size := len(text[start:stop].encode("utf-8"))) > most:
        stop -= max(1, (size - most) // 4)
    return stop


def _place(text: str, start: int, stop: int) -> int:
    """The best place to cut in the second half of a stretch: behind its last white space of the best kind."""
    middle = (start + stop) // 2
    for kind in _PLACES:
        ends = [found.end() for found in kind.finditer(text, middle, stop)]
        if ends:
            return ends[-1]
    return stop
