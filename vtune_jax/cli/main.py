"""The command `vtune-jax`. Nothing heavy is imported before a verb is chosen, so that `--help` answers at once."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtune_jax import __version__
from vtune_jax.errors import UserError, disk_is_full

if TYPE_CHECKING:
    from rich.console import Console

    from vtune_jax.stages.pipeline import Pipeline

USER_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

STAGES = {
    "run": ("the main job: corpora to report, with every stage in between", ""),
    "prepare": ("corpora to token files", ""),
    "pretrain": ("train the base model", "and what it builds on"),
    "targets": ("initial losses, proxy runs and target losses", "and what they build on"),
    "train": ("continual pre-training of every arm", "and what it builds on"),
    "evaluate": ("final losses per domain and on the base domain", "and what they build on"),
    "report": ("results.json, report.html and the table", "and what they build on"),
    "plan": ("rows, epochs, cost and duration, before anything is trained", ""),
}


def main() -> int:
    """The console script: `invoke`, with what libraries' threads say of a reported failure left out."""
    sys.unraisablehook = _without_closed_loops
    code = invoke()
    if code:
        sys.unraisablehook = lambda unraisable: None
    return code


def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    # Orbax's reader threads call into a loop that the first failure has closed.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code (2: a mistake of the user's, said in one line)."""
    options = _parsed(arguments)
    try:
        code = options.verb(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        message, code = str(error), USER_ERROR
    except BrokenPipeError:
        # Whoever read our output has had enough. Nothing is to be said when Python flushes the rest of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        message, code = (
            "interrupted; finished stages are kept, the same command goes on from them",
            INTERRUPTED,
        )
    except Exception as error:
        if not disk_is_full(error):
            raise
        message = (
            f"the disk is full ({getattr(error, 'filename', None) or 'while writing'}). Finished stages and the newest "
            "whole checkpoint are safe. Fix: free some space and run the same command again."
        )
        code = USER_ERROR
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
    for name, (purpose, upstream) in STAGES.items():
        _add_stage(verbs, name, purpose, upstream)
    _add_fit(verbs)
    doctor = verbs.add_parser(
        "doctor",
        help="versions, devices, and what to do about a missing accelerator",
        description="Prints versions and devices, and what to do about a missing accelerator.",
        epilog="example: vtune-jax doctor",
    )
    doctor.set_defaults(verb=_doctor)
    return top


def _add_stage(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, purpose: str, upstream: str
) -> None:
    verb = verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}{', ' + upstream if upstream else ''}.",
        epilog=f"example: vtune-jax {name} configs/quickstart.toml train.steps=100 arms.velocitune.step_size=0.5",
    )
    verb.add_argument("config", type=Path, help="the experiment, a TOML file")
    verb.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields to change, for instance data.batch=32")
    verb.add_argument("--run-folder", type=Path, help="where results go; runs/NAME by default")
    verb.add_argument("--skip-bad", action="store_true", help="skip documents that cannot be read, and count them")
    verb.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="who prepares the corpora: this machine's cores, or Ray's workers",
    )
    verb.add_argument(
        "--allow-data-change",
        action="store_true",
        help="an arm goes on from its newest checkpoint although the data, rows or limits have changed",
    )
    if name == "targets":
        verb.add_argument(
            "--from",
            dest="table",
            type=Path,
            metavar="RUNS.csv",
            help="losses measured elsewhere (columns tokens, loss, domain) instead of proxy runs",
        )
    verb.add_argument("--quiet", action="store_true", help="no progress")
    verb.set_defaults(verb=_stage, name=name)


def _add_fit(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fit = verbs.add_parser(
        "fit",
        help="a scaling law through any points of yours: parameters, intervals, verdict, picture",
        description="Fits a scaling law to a CSV file with columns tokens, loss and, if wanted, domain, params, run.",
        epilog="example: vtune-jax fit points.csv --predict 1e9 --initial 3.2",
    )
    fit.add_argument("points", type=Path, help="CSV file; a law needs its own columns; run: any label")
    fit.add_argument(
        "--law", default="LD", help="name of the law (default: LD, E + B/D^beta); any other word lists them"
    )
    fit.add_argument("--predict", type=float, metavar="D", help="tokens to predict the loss at")
    fit.add_argument(
        "--params", type=float, metavar="N", help="model size to predict it for, under laws over model sizes"
    )
    fit.add_argument("--initial", metavar="LOSS", help="loss before training, or DOMAIN=LOSS,...")
    fit.add_argument("--current", metavar="LOSS", help="loss of today, or DOMAIN=LOSS,...")
    fit.add_argument("--delta", default="1e-3", help='Huber width on log losses, or "auto" (default: 1e-3, published)')
    fit.add_argument("--drop-worst", type=int, default=0, metavar="n", help="leave out the n largest losses")
    fit.add_argument("--drop-head", default="auto", metavar="n", help="leave out the n first points (default: auto)")
    fit.add_argument("--level", type=float, default=0.95, help="of the intervals (default: 0.95)")
    fit.add_argument(
        "--replicates", type=int, metavar="n", help="of the bootstrap, under laws that use it (default: 1000)"
    )
    fit.add_argument("--share-beta", action="store_true", help="a prior of beta that the domains have in common")
    fit.add_argument("--plot", type=Path, metavar="PNG", help="where the picture goes (default: beside the points)")
    fit.add_argument("--no-plot", action="store_true", help="no picture")
    fit.add_argument("--json", action="store_true", help="print JSON")
    fit.set_defaults(verb=_fit)


def _fit(options: argparse.Namespace) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from vtune_jax.cli import fit as fitting

    fitting.keep_compiled()
    if not options.points.name:
        raise UserError(f"{options.points} is no file", "give the path of a CSV file")
    picture = None if options.no_plot else options.plot or options.points.with_suffix(".png")
    answer = fitting.answer(
        fitting.Request(
            points=options.points,
            law=options.law,
            predict=options.predict,
            params=options.params,
            initial=_losses(options.initial, "--initial"),
            current=_losses(options.current, "--current"),
            delta="auto" if options.delta == "auto" else _real(options.delta, "--delta"),
            drop_worst=options.drop_worst,
            drop_head="auto" if options.drop_head == "auto" else _whole(options.drop_head, "--drop-head"),
            level=options.level,
            replicates=options.replicates,
            share_beta=options.share_beta,
            plot=picture,
        )
    )
    print(answer.as_json() if options.json else "\n".join(answer.lines()))
    if picture and not options.json:
        print(f"\npicture: {picture}")
    return 0


def _losses(text: str | None, option: str) -> dict[str, float] | None:
    """`3.2` for every domain, or `code=3.2,papers=2.9`."""
    if text is None:
        return None
    parts = [part.rpartition("=") for part in text.split(",")]
    return {name.strip(): _real(value, option) for name, _, value in parts}


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{option} is no whole number: {text!r}", "give a whole number") from None


def _real(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} is no number: {text!r}", "give a number") from None


def _stage(options: argparse.Namespace) -> int:
    # Read by jax when it is imported: only its errors are of use to a user.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from rich.console import Console

    from vtune_jax.experiment import config as experiment
    from vtune_jax.machine.memory import keep_freed_memory
    from vtune_jax.machine.progress import Progress
    from vtune_jax.stages.pipeline import Pipeline
    from vtune_jax.train.loop import Interrupted

    keep_freed_memory()
    overrides = [*options.overrides, *(["corpus.skip_bad=true"] if options.skip_bad else [])]
    if getattr(options, "table", None):
        overrides.append(f"targets.table={options.table}")
    config = experiment.load(options.config, tuple(overrides))
    folder = options.run_folder or Path("runs") / config.name
    progress = Progress(silent=options.quiet)
    pipeline = Pipeline(
        config, folder, progress, work_engine=options.engine, allow_data_change=options.allow_data_change
    )
    try:
        with pipeline.run_folder.locked():
            # Where there is no terminal nothing says how wide the page is: wide enough for the tables.
            console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
            _run(pipeline, options.name, console)
    except Interrupted as stop:
        progress.note(f"{stop}; the same command goes on from there")
        return 128 + stop.signal_number
    return 0


def _run(pipeline: "Pipeline", name: str, console: "Console") -> None:
    from vtune_jax.cli.plan_table import render_plan
    from vtune_jax.report.terminal import render_table
    from vtune_jax.stages.projection import make_plan

    if name in ("plan", "run"):
        render_plan(make_plan(pipeline), console)
    if name in ("run", "report"):
        render_table(pipeline.report(), console)
        console.print(f"report: {pipeline.run_folder.path / 'report.html'}")
    elif name == "train":
        _ = pipeline.arms
    elif name != "plan":
        getattr(pipeline, name)


def _doctor(options: argparse.Namespace) -> int:
    from vtune_jax.machine import doctor

    return doctor.main()
