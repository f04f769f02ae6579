"""A run small enough to train in a test: four domains of made tokens, a one-layer decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vtune_jax.core.numbers import structure_of
from vtune_jax.core.targets import make_targets
from vtune_jax.core.types import Method
from vtune_jax.data.mixture.spec import PlanSpec, fingerprint
from vtune_jax.data.tokens.rows import TokenRows
from vtune_jax.models import DecoderConfig, build
from vtune_jax.rules import Velocitune
from vtune_jax.train.checkpoint import canonical
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.device_engine import DeviceEngine, compile_segment
from vtune_jax.train.heldout import make_evaluate
from vtune_jax.train.host_engine import HostEngine, compile_step
from vtune_jax.train.listeners import MetricsFiles, Shown
from vtune_jax.train.loop import LoopConfig, Run, train
from vtune_jax.train.numbers import run_numbers
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import start
from vtune_jax.train.step import make_train_step

VOCABULARY, LENGTH, BATCH, INTERVAL, STEPS = 32, 8, 4, 5, 20
DOMAINS = 3
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-2)
METHOD = Velocitune(step_size=2.0, floor=0.02)


@functools.cache
def model():
    return build(DecoderConfig(layers=1, width=16, heads=2, key_value_heads=1, hidden=24), VOCABULARY)


@functools.cache
def params(seed=0):
    """Initialised once: a test that donates them copies them first, as `start` does."""
    # Even where somebody is tracing, as what is remembered must not be a tracer.
    with jax.ensure_compile_time_eval():
        return model().init(seed)


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


def constants(steps=STEPS, method=METHOD, **numbers):
    """Of a run of so many steps; all other numbers are those of this file unless given."""
    options = {"interval": INTERVAL, "seed": spec().seed, "optimizer": OPTIMIZER, "method": method, **numbers}
    return RunConstants(heldout=heldout(), numbers=run_numbers(steps=steps, **options))


_PROGRAMS = {}


def _shared(kind, method, make, *key):
    """Programs depend on the structure of a method alone: most of the time of these tests is compiling them."""
    key = (kind, structure(method), *key)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = make()
    return _PROGRAMS[key]


def structure(method):
    return method if isinstance(method, Method) else structure_of(method)


def step_of(method=METHOD, mesh=None, acts_on="sampling"):
    """The train step as a pure function."""

    def make():
        return make_train_step(model(), method, make_evaluate(model(), 9, mesh), acts_on=acts_on)

    return _shared("step", method, make, mesh, acts_on)


def jitted(method=METHOD, mesh=None, acts_on="sampling"):
    """The compiled train step; it uses the memory of its first argument again."""
    make = functools.partial(compile_step, step_of(method, mesh, acts_on))
    return _shared("jitted", method, make, mesh, acts_on)


def scan_of(method=METHOD, of=None):
    """The compiled segment for a plan, by default that of `spec()`."""
    plan = of or spec()
    return _shared("segment", method, lambda: compile_segment(step_of(method), plan, LENGTH), plan)


def targets():
    rows = np.ones(DOMAINS)
    return make_targets(3.5 * rows, np.array([0.7, 2.0, 2.5]), 0.1 * rows, np.array([0.5, 0.3, 0.2]))


def state(method=METHOD):
    return start(params(), method, targets())


def engine(kind="host", method=METHOD, steps=STEPS, mesh=None, numbers=None, **options):
    numbers = constants(steps, method, **(numbers or {}))
    if kind == "device":
        return DeviceEngine(scan_of(method), spec(), stores(), numbers)
    return HostEngine(jitted(method, mesh), spec(), stores(), numbers, mesh=mesh, **options)


def run(folder, steps=STEPS, **loop):
    return Run(
        folder=folder,
        steps=steps,
        facts=canonical({"data": fingerprint(spec()), "steps": steps}),
        loop=LoopConfig(**{"log_every": 4, "checkpoint_every": 6, **loop}),
    )


def carry_out(run, engine, begin=state, *, tick=lambda steps, fields: None, warn=lambda message: None):
    return train(run, engine, begin, listeners=[MetricsFiles(run.folder, INTERVAL), Shown(tick, warn)])


def trained(folder, kind="host", **options):
    # Each number of steps at once is another program on the device.
    loop = {"log_every": INTERVAL, "checkpoint_every": INTERVAL} if kind == "device" else {}
    return carry_out(run(folder, **loop), engine(kind), **options)
