import errno

import pytest

from vtune_jax.errors import UserError, disk_is_full


def test_problem_and_fix_are_one_line():
    assert str(UserError("the corpus is empty", "give it text")) == "the corpus is empty. Fix: give it text."


def test_what_would_break_the_line_or_move_the_cursor_is_written_out():
    told = str(UserError("no file a\nb\x1b[2J\u2028\ud800", "n\u00e4her \u4e2d"))
    assert told == r"no file a\nb\x1b[2J\u2028\ud800. Fix: näher 中."
    told.encode("utf-8")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "any words"),
        OSError(errno.EDQUOT, "any words"),
        Exception("No space left on device (os error 28)"),
        ValueError("RESOURCE_EXHAUSTED: Error writing local file: Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_known_under_every_name_and_behind_other_errors(error):
    assert disk_is_full(error)
    wrapped = RuntimeError("the writer failed")
    wrapped.__cause__ = error
    assert disk_is_full(wrapped)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("no")])
def test_other_errors_are_not_a_full_disk(error):
    assert not disk_is_full(error)
