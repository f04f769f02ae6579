"""The verbs that work on an experiment: `run` and its stages, `plan`, `report`."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vtune_jax.report.results import Results
    from vtune_jax.stages.pipeline import Pipeline

STAGES = {
    "run": ("the main job: corpora to report, with every stage in between", ""),
    "prepare": ("corpora to token files", ""),
    "pretrain": ("train the base model", "and what it builds on"),
    "targets": ("initial losses, proxy runs and target losses", "and what they build on"),
    "train": ("continual pre-training of every arm", "and what it builds on"),
    "evaluate": ("final losses per domain and on the base domain", "and what they build on"),
    "report": ("the table, report.html and report.png of a finished run, from its results", ""),
    "plan": ("rows, epochs, cost and duration of a run; corpora are prepared for it, nothing is trained", ""),
}


class Stopped(Exception):
    """A signal asked the process to stop outside of a training loop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def add_parsers(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verbs and their options."""
    for name, (purpose, upstream) in STAGES.items():
        verb = verbs.add_parser(
            name,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}{', ' + upstream if upstream else ''}.",
            epilog=f"example: vtune-jax {name} configs/quickstart.toml train.steps=100 arms.velocitune.step_size=0.5",
        )
        config = "the experiment, a TOML file" + ("; or the folder of a run" if name == "report" else "")
        verb.add_argument("config", type=Path, help=config)
        verb.add_argument(
            "overrides",
            nargs="*",
            metavar="KEY=VALUE",
            help="fields unlike the file, for instance data.batch=32",
        )
        verb.add_argument("--run-folder", type=Path, help="where results go; runs/NAME by default")
        verb.add_argument("--skip-bad", action="store_true", help="skip documents that cannot be read, and count them")
        if name == "report":
            verb.add_argument("--to", type=Path, metavar="FOLDER", help="where pages go; beside the results by default")
            verb.set_defaults(verb=_report)
            continue
        verb.add_argument(
            "--store",
            type=Path,
            help="finished stages are found there; `store` beside the run folder by default",
        )
        verb.add_argument("--quiet", action="store_true", help="no progress")
        verb.add_argument(
            "--engine",
            choices=("local", "ray"),
            default="local",
            help="who prepares the corpora: this machine's cores, or Ray's workers",
        )
        verb.add_argument(
            "--allow-data-change",
            action="store_true",
            help="where data, rows or limits have changed, arms go on from the state they had",
        )
        if name == "targets":
            verb.add_argument(
                "--from",
                dest="table",
                type=Path,
                metavar="RUNS.csv",
                help="losses measured elsewhere (columns tokens, loss, domain) instead of proxy runs; short for "
                "targets.table=RUNS.csv, which `run` and `train` take",
            )
        verb.set_defaults(verb=_stage, name=name)


def _stage(options: argparse.Namespace) -> int:
    # Read by jax when it is imported: only its errors are of use to a user.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from vtune_jax.experiment.load import load
    from vtune_jax.machine.compiled import keep_compiled
    from vtune_jax.machine.memory import keep_freed_memory
    from vtune_jax.machine.progress import Progress
    from vtune_jax.stages.pipeline import Pipeline
    from vtune_jax.train.loop import Interrupted

    keep_freed_memory()
    keep_compiled()
    config = load(options.config, _overrides(options))
    folder = options.run_folder or Path("runs") / config.name
    progress = Progress(silent=options.quiet)
    pipeline = Pipeline(
        config,
        folder,
        progress,
        store=options.store,
        work_engine=options.engine,
        allow_data_change=options.allow_data_change,
    )
    try:
        with _stop_signals():
            _run(pipeline, options.name, _console())
    except (Interrupted, Stopped, KeyboardInterrupt) as stop:
        progress.note(f"{_told(stop)}; {kept(pipeline)}")
        return 128 + _number(stop)
    return 0


def _overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """Those that are given as such, and those that options are short for."""
    table = getattr(options, "table", None)
    return (
        *options.overrides,
        *(["corpus.skip_bad=true"] if options.skip_bad else []),
        *([f"targets.table={json.dumps(str(table))}"] if table else []),
    )


def _run(pipeline: "Pipeline", name: str, console: "Console") -> None:
    from vtune_jax.cli.plan_table import render_plan

    if name in ("plan", "run"):
        render_plan(pipeline.project(), console)
    if name == "run":
        _show(pipeline.report(), pipeline.session.run_folder.path, console)
    elif name != "plan":
        {
            "prepare": pipeline.prepare,
            "pretrain": pipeline.pretrain,
            "targets": pipeline.targets,
            "train": pipeline.train_all,
            "evaluate": pipeline.evaluate,
        }[name]()


def _report(options: argparse.Namespace) -> int:
    """From the results alone: neither corpora nor stages are read, and nothing but the pages is written."""
    from vtune_jax.errors import UserError
    from vtune_jax.experiment.load import load
    from vtune_jax.report.results import Results
    from vtune_jax.stages.pipeline import write_report
    from vtune_jax.stages.run_folder import RESULTS, configuration, with_results

    if options.config.is_dir():
        if overrides := _overrides(options):
            raise UserError(
                f"{' '.join(overrides)} changes nothing in a folder of results",
                "give the config instead, or the folder of one configuration",
            )
        found = [options.config] if (options.config / RESULTS).exists() else with_results(options.config)
        folder = found[-1] if found else None
    else:
        config = load(options.config, _overrides(options))
        folder = (options.run_folder or Path("runs") / config.name) / configuration(config)
    if folder is None or not (folder / RESULTS).exists():
        raise UserError(f"{folder or options.config} holds no results", "run `vtune-jax run CONFIG` to make them")
    results = Results.load(folder / RESULTS)
    target, console = options.to or folder, _console()
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_report(results, target)
    except OSError as error:
        if options.to:
            raise UserError(f"cannot write to {target} ({error.strerror})", "give another folder with --to") from error
        console.print(f"note: {target} cannot be written to; give --to FOLDER for the pages")
        target = None
    _show(results, target, console)
    return 0


def _show(results: "Results", folder: Path | None, console: "Console") -> None:
    from vtune_jax.report.terminal import render_table

    render_table(results, console)
    if folder:
        # A path that is broken into lines cannot be copied.
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


def kept(pipeline: "Pipeline") -> str:
    """What an interrupted run keeps, and how it goes on."""
    session = pipeline.session
    finished = ", ".join(session.finished) or "nothing yet"
    begun = f"; '{session.working_on}' goes on from what it has saved" if session.working_on else ""
    if session.waits:
        begun = f"; another process goes on with '{session.working_on}'"
    return f"finished and kept in {session.store.root}: {finished}{begun}. The same command goes on from there"


def _told(stop: BaseException) -> str:
    return "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)


def _number(stop: BaseException) -> int:
    return int(getattr(stop, "signal_number", getattr(stop, "number", signal.SIGINT)))


def _console() -> "Console":
    from rich.console import Console

    # Where there is no terminal nothing says how wide the page is: wide enough for the tables.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM as an exception, so that what is kept is told; training loops catch it themselves and save first."""

    def stop(number: int, frame: FrameType | None) -> Any:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
