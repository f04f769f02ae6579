"""Which proxies are trained, how long, and where they are evaluated: from a budget, a share of the real run's compute.

Two designs. "one": a single run, annealed over its own length and evaluated along the way, to which the law with
learning-rate annealing is fitted. "several": annealed runs whose lengths halve, in one vmapped program, of which only
the ends count, and which `L(D) = E + B / D^beta` is fitted to. Where a precision is asked for, the budget is spent in
rounds that double, and the proxies end when the targets are sure enough.
"""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vtune_jax.core.simplex import to_quota
from vtune_jax.data.mixture.config import DataConfig
from vtune_jax.data.mixture.spec import fingerprint
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.fits.config import MOST_BUDGET, TargetsConfig
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.stages.session import Tools
from vtune_jax.stages.short_runs import FromBase
from vtune_jax.train.checkpoint import canonical
from vtune_jax.train.heldout import mean_loss
from vtune_jax.train.lanes import LaneEngine, ShortRun, packed
from vtune_jax.train.listeners import Shown
from vtune_jax.train.loop import Run, train
from vtune_jax.train.optimizer import OptimizerConfig

ROUNDS = 3
_SHORTEST, _LEAST_ENDS = 4, 4  # steps of the shortest run of a ladder, and runs it must hold
_LEAST_STEPS, _LEAST_EVALUATIONS, _MOST_EVALUATION = 12, 8, 0.25
_LEAST_PLACES = 5  # one more than the law has parameters
_FIRST_SHARE = 8  # a run is first evaluated after this part of its steps, when the worst of the warm-up is over


class Round(NamedTuple):
    """Proxies that are trained together."""

    runs: tuple[ShortRun, ...]
    cost_steps: float  # training steps plus what the evaluations cost, in training steps of the real run


class Measurement(NamedTuple):
    """Losses along the proxies of some rounds, one row per evaluation."""

    steps: np.ndarray  # done by then
    run_steps: np.ndarray  # of the run it belongs to
    run: np.ndarray  # index of the run
    losses: np.ndarray  # [points, domains]


@dataclasses.dataclass(frozen=True)
class RealRun:
    """The run whose end is predicted, as far as proxies depend on it."""

    steps: int
    optimizer: OptimizerConfig
    data: DataConfig
    domains: int

    @property
    def tokens(self) -> int:
        """Its whole budget."""
        return self.steps * self.data.batch_tokens

    @property
    def evaluation_steps(self) -> float:
        """What one evaluation of all held-out rows costs, in training steps: a forward pass is a third of a step."""
        return self.domains * self.data.heldout_rows / self.data.batch / 3


def real_run(config: ExperimentConfig) -> RealRun:
    """The run that every arm of an experiment goes through."""
    return RealRun(config.train.steps, config.train.optimizer, config.data, len(config.corpus.domains))


def design(options: TargetsConfig, real: RealRun) -> list[Round]:
    """The rounds that the budget allows.

    Raises:
        UserError: the budget is too small for any.
    """
    budget, price = options.budget * real.steps, real.evaluation_steps
    if options.proxies == "one":
        least = _LEAST_STEPS + _LEAST_EVALUATIONS * price
        rounds = ROUNDS if options.half_width else 1
        while rounds > 1 and budget / (2**rounds - 1) < least:
            rounds -= 1
        if budget < least:
            raise _too_small(options, real, _LEAST_STEPS, _LEAST_EVALUATIONS)
        shares = [2.0**index / (2**rounds - 1) for index in range(rounds)]
        return [_single(share * budget, options.evaluations, price, real.optimizer.warmup_fraction) for share in shares]
    return _ladders(options, real)


def _single(budget: float, evaluations: int, price: float, warmup: float) -> Round:
    count = int(np.clip(_MOST_EVALUATION * budget / price, _LEAST_EVALUATIONS, evaluations))
    length = int(budget - count * price)
    first = max(length // _FIRST_SHARE, round(warmup * length)) + 1
    places = np.unique(np.round(np.geomspace(min(first, length), length, count)).astype(int))
    if len(places) < _LEAST_PLACES:
        raise UserError(
            f"a proxy of {length} steps can be evaluated at {len(places)} places after its warm-up; the law needs "
            f"{_LEAST_PLACES}",
            "lower train.optimizer.warmup_fraction, raise targets.budget, or train longer",
        )
    return Round((ShortRun(length, tuple(places.tolist())),), length + len(places) * price)


def _ladders(options: TargetsConfig, real: RealRun) -> list[Round]:
    """One ladder of halving lengths; in rounds, the two longest rungs come last."""
    budget, price = options.budget * real.steps, real.evaluation_steps
    lengths: list[int] = []
    # A ladder costs less than twice its longest rung, and an evaluation for each rung.
    longest = (budget - price * 6) / 2
    while round(longest) >= _SHORTEST and len(lengths) < 7:
        lengths.append(round(longest))
        longest /= 2
    if len(lengths) < _LEAST_ENDS:
        # Lengths are rounded: a shortest run half a step short will do.
        raise _too_small(options, real, (2 * _SHORTEST - 1) * 2 ** (_LEAST_ENDS - 1), 6)
    held_back = min(2, len(lengths) - _LEAST_ENDS) if options.half_width else 0
    groups = [lengths[held_back:], *([length] for length in reversed(lengths[:held_back]))]
    return [
        Round(tuple(ShortRun(length, (length,)) for length in group), sum(group) + price * len(group))
        for group in groups
    ]


def _too_small(options: TargetsConfig, real: RealRun, steps: int, evaluations: int) -> UserError:
    """The error of a budget that does not hold so many steps and evaluations, with each value that would do."""
    budget, wanted = options.budget * real.steps, steps + evaluations * real.evaluation_steps
    share = math.ceil(100 * wanted / real.steps) / 100
    rows = int((budget - steps) * 3 * real.data.batch / (evaluations * real.domains))
    fixes = [f"set targets.budget to at least {share:.2f}"] if share <= MOST_BUDGET else []
    fixes += [f"data.heldout_rows to at most {rows}"] if rows >= 1 else []
    fixes += [f"train.steps to at least {math.ceil(wanted / options.budget)}"]
    return UserError(
        f"targets.budget allows only {budget:.1f} optimiser steps for the proxies, evaluations included",
        ("" if fixes[0].startswith("set") else "set ") + ", or ".join(fixes),
    )


def share_read(real: RealRun, rows: np.ndarray, prior: np.ndarray, longest: int) -> np.ndarray:
    """The sub-sample: which share of each domain's rows the longest proxy reads, a random part; over 1: repeatedly."""
    return np.asarray(longest * real.data.batch * prior / rows)


def measure_round(
    start: FromBase, options: TargetsConfig, folder: Path, tools: Tools, index: int, plan: Round
) -> Measurement:
    """Trains and evaluates the proxies of a round, or reads what they gave."""
    file = folder / f"round-{index}.json"
    if not file.exists():
        losses = _train(start, options, folder / f"round-{index}", tools, plan)
        write_json(file, [loss.tolist() for loss in losses])
        shutil.rmtree(folder / f"round-{index}", ignore_errors=True)
    losses = [np.array(loss) for loss in read_json(file)]
    return Measurement(
        steps=np.concatenate([run.evaluate_after for run in plan.runs]),
        run_steps=np.concatenate([np.full(len(run.evaluate_after), run.steps) for run in plan.runs]),
        run=np.concatenate([np.full(len(run.evaluate_after), number) for number, run in enumerate(plan.runs)]),
        losses=np.concatenate(losses),
    )


def _train(start: FromBase, options: TargetsConfig, folder: Path, tools: Tools, plan: Round) -> list[np.ndarray]:
    trainer = tools.trainer(start.recipe)
    # Rows come in random order, so that a short run reads a random sub-sample; the first part of a domain would be
    # another text.
    stores = tuple(store.first(options.subsample) for store in start.streams.stores)
    streams = Streams(stores=stores, heldout=start.streams.heldout)
    spec = trainer.plan_spec(streams, start.seed)
    lanes = packed(plan.runs)
    facts = {"data": fingerprint(spec), "runs": [list(run) for run in plan.runs], **start.recipe.facts}
    lengths = ", ".join(str(run.steps) for run in plan.runs)
    with tools.progress.bar(f"proxies of {lengths} steps, {len(lanes.of_lane)} at a time", lanes.steps) as tick:
        engine = LaneEngine(
            lanes,
            trainer.model,
            start.optimizer,
            start.base.params(),
            spec=spec,
            stores=stores,
            quota=np.asarray(to_quota(jnp.asarray(start.prior, jnp.float32))),
            heldout_loss=lambda params: mean_loss(trainer.heldout_sums(params, streams.heldout)),
            mesh=trainer.mesh,
        )
        run = Run(folder=folder, steps=lanes.steps, facts=canonical(facts), loop=start.recipe.loop)
        listeners = [Shown(tick, tools.progress.note)]
        return engine.losses(train(run, engine, engine.begin, listeners=listeners))


def joined(parts: list[Measurement]) -> Measurement:
    """The points of several rounds; their runs stay apart."""
    offsets = np.cumsum([0, *(part.run.max() + 1 for part in parts)])[:-1]
    moved = [part._replace(run=part.run + offset) for part, offset in zip(parts, offsets, strict=True)]
    return Measurement(*(np.concatenate(columns) for columns in zip(*moved, strict=True)))
