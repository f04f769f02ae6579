"""The command `vtune-jax`. Nothing heavy is imported before a verb is chosen, so that `--help` answers at once."""

import argparse
import codecs
import os
import sys
from collections.abc import Sequence

from vtune_jax import __version__
from vtune_jax.cli import checkpoints, experiment, fit, runs
from vtune_jax.errors import UserError, told_by_the_system

USER_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def main() -> int:
    """The console script: `invoke`, with what libraries' threads say of a reported failure left out."""
    sys.unraisablehook = _without_closed_loops
    codecs.register_error("nearest", _nearest)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="nearest")  # type: ignore[union-attr]
    code = invoke()
    if code:
        sys.unraisablehook = lambda unraisable: None
    return code


def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    # Orbax's reader threads call into a loop that the first failure has closed.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


_NEAREST = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": "x"}


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that a terminal or pipe does not know."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_NEAREST.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code (2: a mistake of the user's, said in one line)."""
    options = _parsed(arguments)
    try:
        code: int = options.verb(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        message, code = str(error), USER_ERROR
    except BrokenPipeError:
        # Whoever read our output has had enough. Nothing is to be said when Python flushes the rest of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except Exception as error:
        told = told_by_the_system(error)
        if told is None:
            raise
        message, code = str(told), USER_ERROR
    print(f"vtune-jax: {message}", file=sys.stderr)
    return code


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options; overrides may stand before, between and after them, which argparse alone refuses."""
    arguments_parser = parser()
    options, rest = arguments_parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if unknown:
        arguments_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="vtune-jax",
        description="Continue a language model on several domains with weights that follow learning velocity.",
        epilog="example: vtune-jax run configs/quickstart.toml",
    )
    top.add_argument("--version", action="version", version=f"vtune-jax {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    experiment.add_parsers(verbs)
    runs.add_parser(verbs)
    checkpoints.add_parsers(verbs)
    fit.add_parser(verbs)
    doctor = verbs.add_parser(
        "doctor",
        help="versions, devices, and what to do about a missing accelerator",
        description="Prints versions and devices, and what to do about a missing accelerator.",
        epilog="example: vtune-jax doctor",
    )
    doctor.set_defaults(verb=_doctor)
    return top


def _doctor(options: argparse.Namespace) -> int:
    from vtune_jax.machine import doctor

    return doctor.main()
