"""The one exception for a user's mistake: what is wrong and what to do, in one line; and how a full disk is told."""

import errno


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
        return f"{self.problem}. Fix: {self.fix}."


def disk_is_full(error: BaseException) -> bool:
    """Whether this error, or what caused it, is a full disk or an exhausted quota.

    Several libraries raise errors of their own for it, with nothing of the system's but its words.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(seen) for words in ("No space left on device", "Disk quota exceeded")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
