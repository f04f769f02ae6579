"""The one exception for a user's mistake: what is wrong and what to do, in one line; also for what the system says."""

import errno
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in a config, a corpus or a run folder that the user can mend.

    The command line prints it as one line and exits with code 2; it is raised before anything expensive starts,
    or, when it can only be seen later, after everything already computed is safe on disk.

    Args:
        problem: what is wrong, naming file, key, domain or line. No full stop at the end.
        fix: what to do about it, as an instruction. No full stop at the end.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        # Names of files and what stands in them may hold line ends and codes that move a terminal's cursor.
        return "".join(letter if letter.isprintable() else _escaped(letter) for letter in self._said())

    def _said(self) -> str:
        return f"{self.problem}. Fix: {self.fix}."


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def disk_is_full(error: BaseException) -> bool:
    """Whether this error, or what caused it, is a full disk or an exhausted quota.

    Several libraries raise errors of their own for it, with nothing of the system's but its words.
    """
    return any(
        (isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(words in str(seen) for words in ("No space left on device", "Disk quota exceeded"))
        for seen in _with_causes(error)
    )


def told_by_the_system(error: BaseException) -> UserError | None:
    """The same as a user's mistake if it is the operating system's word about a file or a disk; None for all others."""
    if disk_is_full(error):
        file = getattr(error, "filename", None) or "while writing"
        return UserError(
            f"the disk is full ({file}). Finished stages and the newest whole checkpoint are safe",
            "free some space and run the same command again",
        )
    for seen in _with_causes(error):
        if isinstance(seen, OSError) and seen.filename is not None and seen.strerror:
            return UserError(
                f"{seen.filename}: {seen.strerror[0].lower()}{seen.strerror[1:]}",
                "see that it is there and may be read and written, and run the same command again",
            )
    return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
