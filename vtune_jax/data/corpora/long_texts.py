"""Texts too long to be encoded at once: cut where the tokens on both sides stay what they are.

A tokenizer holds some two hundred bytes for each byte of a text while it encodes it. Tokenizers split a text into words
before they look for tokens, and between the last letter of a word and what follows there is such a split in all that
are in use, but for those that put a mark before each text. Each place is therefore tried on the text around it.
"""

from collections.abc import Callable, Iterator

LONG = 1 << 18
"""Characters of the longest text that is encoded at once."""
_AROUND, _TRIES = 512, 16  # characters on either side that a place is tried on; places tried in a stretch

Ids = Callable[[str], list[int]]
"""The tokens of a text."""


def pieces(text: str, ids: Ids | None = None, *, long: int = LONG) -> Iterator[str]:
    """The text in pieces of at most `long` characters whose tokens, joined, are those of the whole text.

    A stretch without a place where it may be cut stays whole, however long it is.

    Args:
        text: any.
        ids: tries a place; None: every end of a word will do.
        long: see above.
    """
    start = 0
    while len(text) - start > long:
        place = _place(text, start, long, ids)
        if place is None:
            break
        yield text[start:place]
        start = place
    yield text[start:] if start else text


def _place(text: str, start: int, long: int, ids: Ids | None) -> int | None:
    """The last good place in the first stretch that has one, not in its first half."""
    for stop in range(start + long, len(text), long // 2):
        tries = 0
        for place in range(stop, stop - long // 2, -1):
            if text[place - 1].isalnum() and not text[place].isalnum():
                if ids is None or _is_good(text, place, ids):
                    return place
                tries += 1
                if tries == _TRIES:
                    break
    return None


def _is_good(text: str, place: int, ids: Ids) -> bool:
    left, right = text[max(0, place - _AROUND) : place], text[place : place + _AROUND]
    return ids(left + right) == ids(left) + ids(right)
