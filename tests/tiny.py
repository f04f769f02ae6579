"""A run small enough to train in a test: four domains of made tokens, a one-layer decoder."""

import functools

import jax.numpy as jnp
import numpy as np

from vtune_jax.core.targets import make_targets
from vtune_jax.data.mixture.spec import PlanSpec, fingerprint
from vtune_jax.data.tokens.rows import TokenRows
from vtune_jax.models import DecoderConfig, build
from vtune_jax.rules import Velocitune
from vtune_jax.train.checkpoint import canonical
from vtune_jax.train.device_engine import DeviceEngine, compile_scan
from vtune_jax.train.heldout import make_evaluate
from vtune_jax.train.host_engine import HostEngine, compile_step
from vtune_jax.train.listeners import MetricsFiles, Shown
from vtune_jax.train.loop import LoopConfig, Run, train
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import RunConstants, start
from vtune_jax.train.step import make_train_step

VOCABULARY, LENGTH, BATCH, INTERVAL, STEPS = 32, 8, 4, 5, 20
DOMAINS = 3
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-2)
METHOD = Velocitune(step_size=2.0, floor=0.02)


@functools.cache
def model():
    return build(DecoderConfig(layers=1, width=16, heads=2, key_value_heads=1, hidden=24), VOCABULARY)


@functools.cache
def stores():
    rng = np.random.default_rng(0)
    # Each domain repeats its own few tokens, so that there is something to learn and domains differ in how much.
    return tuple(
        TokenRows(rng.integers(0, 2 + 10 * domain, 400 + 300 * domain).astype(np.uint16), LENGTH, name=f"d{domain}")
        for domain in range(DOMAINS)
    )


@functools.cache
def heldout():
    rows = [store.read(np.arange(6, dtype=np.uint32))["tokens"] for store in stores()]
    return {"tokens": jnp.asarray(np.stack(rows))}


def spec():
    return PlanSpec(rows=tuple(map(len, stores())), batch=BATCH, seed=3)


def constants(steps=STEPS):
    return RunConstants(heldout=heldout(), horizon=jnp.asarray(steps, jnp.int32))


@functools.cache
def steps_of(method=METHOD):
    plain = make_train_step(model(), OPTIMIZER, method.build(), make_evaluate(model(), 9), interval=INTERVAL)
    return plain, compile_step(plain)


@functools.cache
def scan_of(method=METHOD):
    return compile_scan(steps_of(method)[0], spec(), LENGTH)


def targets():
    rows = np.ones(DOMAINS)
    return make_targets(3.5 * rows, np.array([0.7, 2.0, 2.5]), 0.1 * rows, np.array([0.5, 0.3, 0.2]))


def state(method=METHOD):
    return start(model().init(0), method.build(), targets())


def engine(kind="host", method=METHOD, steps=STEPS, **options):
    if kind == "device":
        return DeviceEngine(scan_of(method), spec(), stores(), constants(steps), interval=INTERVAL)
    return HostEngine(steps_of(method)[1], spec(), stores(), constants(steps), interval=INTERVAL, **options)


def run(folder, steps=STEPS, **loop):
    return Run(
        folder=folder,
        steps=steps,
        facts=canonical({"data": fingerprint(spec()), "steps": steps}),
        loop=LoopConfig(**{"log_every": 4, "checkpoint_every": 6, **loop}),
    )


def carry_out(run, engine, begin=state, *, tick=lambda steps, fields: None, warn=lambda message: None):
    return train(run, engine, begin, listeners=[MetricsFiles(run.folder), Shown(tick, warn)])


def trained(folder, kind="host", **options):
    return carry_out(run(folder), engine(kind), **options)
