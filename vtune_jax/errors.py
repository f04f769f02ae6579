"""The one exception for a user's mistake: what is wrong and what to do, in one line."""


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
