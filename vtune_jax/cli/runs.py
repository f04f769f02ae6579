"""`vtune-jax runs`: what runs and stages there are, and which stages nobody refers to."""

import argparse
import datetime
import shutil
from pathlib import Path


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verb and its options."""
    runs = verbs.add_parser(
        "runs",
        help="runs and finished stages with size, age and state; --prune finds those that no run refers to",
        description="Lists runs and the stages in their store, with size, age and state.",
        epilog="example: vtune-jax runs runs --prune",
    )
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="folder of runs (default: runs)")
    runs.add_argument("--store", type=Path, help="folder of stages; `store` in the folder of runs by default")
    runs.add_argument("--prune", action="store_true", help="say which stages no run refers to")
    runs.add_argument("--yes", action="store_true", help="with --prune: remove them")
    runs.set_defaults(verb=_runs)


def _runs(options: argparse.Namespace) -> int:
    from vtune_jax.errors import UserError
    from vtune_jax.stages.run_folder import OWNER, stage_entries

    store = options.store or options.folder / "store"
    if options.yes and not options.prune:
        raise UserError("--yes without --prune does nothing", "add --prune, or leave --yes out")
    if options.store and not store.is_dir():
        raise UserError(f"there is no folder {store}", "give the folder that holds your stages")
    if (options.folder / OWNER).exists():
        raise UserError(f"{options.folder} is a run", f"give the folder that holds your runs: {options.folder.parent}")
    if not (options.folder.is_dir() or store.is_dir()):
        raise UserError(f"there is no folder {options.folder}", "give the folder that holds your runs")
    entries = stage_entries(store) if store.is_dir() else []
    if options.prune:
        return _prune(store, entries, remove=options.yes)
    _list_runs(options.folder, store)
    print()
    _list_stages(entries)
    return 0


def _list_runs(folder: Path, store: Path) -> None:
    from vtune_jax.stages.run_folder import CONFIG, OWNER, RESULTS, configurations, earlier_version, referring

    runs = {owner.parent.resolve() for owner in folder.glob(f"*/{OWNER}")}
    runs |= {found.parent for found in (referring(store) if store.is_dir() else [])}
    rows = []
    for run in sorted(runs):
        if line := earlier_version(run):
            print(f"note: {line}")
        for configuration in configurations(run):
            changed = datetime.datetime.fromtimestamp((configuration / CONFIG).stat().st_mtime)
            state = "results" if (configuration / RESULTS).exists() else "no results yet"
            rows.append((run.name, configuration.name, state, age(changed), differences(run, configuration)))
    print_table(("run", "configuration", "state", "opened", "differs from the first in"), rows, "no runs")


def _list_stages(entries: list) -> None:  # type: ignore[type-arg]
    rows = [
        (entry.folder.name, entry.state, size(entry.bytes), age(entry.changed), str(len(entry.runs)))
        for entry in sorted(entries, key=lambda entry: -entry.bytes)
    ]
    print_table(("stage", "state", "size", "written", "runs that refer to it"), rows, "no stages")
    if entries:
        print(f"{size(sum(entry.bytes for entry in entries))} in all")


def _prune(store: Path, entries: list, *, remove: bool) -> int:  # type: ignore[type-arg]
    idle = [entry for entry in entries if not entry.runs and entry.state != "running"]
    if remove:
        idle = [entry for entry in idle if _removed(store, entry.folder)]
    for entry in idle:
        print(f"{'removed' if remove else 'would remove'} {entry.folder} ({size(entry.bytes)}, {entry.state})")
    total = size(sum(entry.bytes for entry in idle))
    print(f"{len(idle)} stages that no run refers to, {total}" + ("" if remove or not idle else "; --yes removes them"))
    return 0


def _removed(store: Path, stage: Path) -> bool:
    """Removes a stage, unless a process has begun to work on it or to refer to it since the stages were listed."""
    from vtune_jax.stages.run_folder import stage_users
    from vtune_jax.stages.store import unless_locked

    with unless_locked(stage) as free:
        if not free or stage.resolve() in stage_users(store):
            print(f"left {stage}: it is in use")
            return False
        shutil.rmtree(stage)
        return True


def differences(run: Path, configuration: Path) -> str:
    """The fields in which a configuration differs from the run's first, as overrides."""
    import tomllib

    from vtune_jax.stages.run_folder import CONFIG, configurations

    first = configurations(run)[0]
    try:
        ours, theirs = (
            flat(tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))) for folder in (configuration, first)
        )
    except ValueError:
        return f"{CONFIG} is damaged"
    changed = [f"{key}={value}" for key, value in ours.items() if theirs.get(key) != value]
    return " ".join([*changed, *(f"without {key}" for key in theirs if key not in ours)])


def flat(table: object, prefix: str = "") -> dict[str, object]:
    """A nested table with dotted keys."""
    if isinstance(table, dict):
        pairs = table.items()
    elif isinstance(table, list) and any(isinstance(entry, dict) for entry in table):
        pairs = ((str(entry.get("label") or entry.get("name") or place), entry) for place, entry in enumerate(table))  # type: ignore[assignment]
    else:
        return {prefix: table}
    return {key: value for name, entry in pairs for key, value in flat(entry, f"{prefix}.{name}".lstrip(".")).items()}


def size(count: int) -> str:
    """A number of bytes in a unit that fits."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(moment: datetime.datetime) -> str:
    """How long ago a moment is."""
    seconds = max(0.0, (datetime.datetime.now() - moment).total_seconds())
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def print_table(header: tuple[str, ...], rows: list, empty: str) -> None:  # type: ignore[type-arg]
    """Columns as wide as their widest entry."""
    if not rows:
        print(empty)
        return
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
