"""The verb `fit`: a scaling law through any points. `fit_answer`, which is loaded when needed, makes the answer."""

import argparse
import os
from pathlib import Path

from vtune_jax.errors import UserError


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verb and its options."""
    fit = verbs.add_parser(
        "fit",
        help="a scaling law through any points of yours: parameters, intervals, verdict, picture",
        description="Fits a scaling law to a CSV file with columns tokens, loss and, if wanted, domain, params, run. "
        "Common other names are understood, N and D among them, and so is a tracker's export with a column of losses "
        "for each run.",
        epilog="example: vtune-jax fit points.csv --predict 1e9 --initial 3.2; vtune-jax fit export.csv "
        "--tokens-per-step 524288; vtune-jax fit sweep.csv --law LND --columns loss=final_ce --best-of-place",
    )
    fit.add_argument("points", type=Path, help="CSV file; a law needs its own columns; run: any label")
    fit.add_argument(
        "--columns",
        metavar="NAME=COLUMN,...",
        help="which columns of the file are tokens, loss, params, domain, run or step: tokens=D,loss=final_ce; "
        "several loss=COLUMN are several domains",
    )
    fit.add_argument(
        "--tokens-per-step",
        type=float,
        metavar="n",
        help="for a column of steps instead of tokens: sequences in a batch times tokens in a sequence",
    )
    fit.add_argument(
        "--best-of-place",
        action="store_true",
        help="keep the least loss of each domain, tokens and params, as of a sweep of learning rates",
    )
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
    from vtune_jax.cli import fit_answer
    from vtune_jax.machine.compiled import keep_compiled
    from vtune_jax.machine.mesh import assert_devices

    assert_devices()
    keep_compiled()
    if not options.points.name:
        raise UserError(f"{options.points} is no file", "give the path of a CSV file")
    picture = None if options.no_plot else options.plot or options.points.with_suffix(".png")
    answer = fit_answer.answer(
        fit_answer.Request(
            points=options.points,
            columns=options.columns,
            tokens_per_step=options.tokens_per_step,
            best_of_place=options.best_of_place,
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
