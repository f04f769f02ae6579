"""One table of methods goes through one set of promises; a new method is tested by being listed."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtune_jax import rules
from vtune_jax.core.constraints import with_floor
from vtune_jax.core.filters import Ema, LocalLevel, Median
from vtune_jax.core.types import Alignment, ExcessSums, LossSums, Observation, Targets
from vtune_jax.rules import METHODS, Ado, Aioli, DoGE, DoReMi, DynamicBatchLoading, GroupDro, Odm, SkillIt, Velocitune
from vtune_jax.rules.ado import with_law
from vtune_jax.rules.ado_fit import Law
from vtune_jax.rules.config import numbers_of, structure_of, with_numbers

CONFIGS = {entry.name: entry.config for entry in METHODS} | {
    "dbl bandit": functools.partial(DynamicBatchLoading, form="bandit"),
    "dbl clipped": functools.partial(DynamicBatchLoading, clip=True),
    "group_dro adjusted": functools.partial(GroupDro, adjustment=2.0, normalize=True),
    "group_dro cvar": functools.partial(GroupDro, form="cvar"),
    "odm smoothed_softmax": functools.partial(Odm, form="smoothed_softmax"),
    "odm smoothed_share": functools.partial(Odm, form="smoothed_share"),
    "skillit normalized": functools.partial(SkillIt, normalize=True, scale_step=True, fade=True),
    "skillit learned": functools.partial(SkillIt, learn_graph=True, masked=(0,)),
    "odm paper": functools.partial(Odm, form="paper"),
    "velocitune from_prior": functools.partial(Velocitune, form="from_prior", clamp=False),
    "doremi levanter": functools.partial(DoReMi, form="levanter"),
    "doremi aioli": functools.partial(DoReMi, form="aioli"),
    "doge heldout": functools.partial(DoGE, towards="heldout", keep_absent=False, lowest=-5.0, targets=(0,)),
    "aioli ema": functools.partial(Aioli, memory=0.5, favour=1.0, hold=1),
    "ado soon": functools.partial(Ado, start=2, refit_every=2, ignore=0, stride=1, filter_window=3, capacity=8),
    "ado mixtera": functools.partial(
        Ado, form="mixtera", start=2, refit_every=3, ignore=0, stride=1, filter_window=1, capacity=16
    ),
    "velocitune bounded": functools.partial(
        Velocitune, step_size=3.0, largest_change=0.5, trust_region=0.4, filter=Ema()
    ),
    "dbl gated": functools.partial(DynamicBatchLoading, gate=1.0, filter=LocalLevel(drift=0.05)),
    "odm median": functools.partial(Odm, filter=Median(), max_repeats=1e9),
    "aioli diagonal": functools.partial(Aioli, diagonal=True, normalize=False),
}
PROBING = {name for name, config in CONFIGS.items() if "probes" in config().build().needs}
"""Methods whose weights are those of a probe at most times."""
FITTING = {"ado soon", "ado mixtera"}
"""Methods that fit a law on the way: on the few noisy points here it is undetermined in any precision."""
PLACED = {name for name in CONFIGS if name in ("skillit learned", "doge heldout")}
"""Configs that name a domain by its place, and so do depend on the order."""
EVERY_METHOD = pytest.mark.parametrize("name", CONFIGS)
FLOOR = 0.01


def problem(seed, domains, dtype=np.float32):
    rng = np.random.default_rng(seed)
    initial = rng.uniform(2, 5, domains).astype(dtype)
    target = (initial - rng.uniform(0.1, 2, domains)).astype(dtype)
    prior = rng.dirichlet(np.ones(domains)).astype(dtype)
    sizes = jnp.asarray(rng.uniform(1e3, 1e6, domains), dtype)
    graph = jnp.asarray(rng.uniform(0, 1, (domains, domains)), dtype)
    constants = {"sizes": sizes, "budget": sizes.sum(), "graph": graph}
    targets = Targets(*map(jnp.asarray, (initial, target, np.zeros(domains, dtype), prior)), constants)
    loss = initial - rng.uniform(-0.2, 1.2, domains) * (initial - target)
    tokens = rng.integers(1, 5000, domains)
    return targets, loss.astype(dtype), tokens


def reordered(targets, order):
    constants = dict(targets.constants, sizes=targets.constants["sizes"][order])
    constants["graph"] = targets.constants["graph"][np.ix_(order, order)]
    columns = (column[order] for column in targets[:4])
    return Targets(*columns, constants)


def observation(loss, tokens, step=10, weights=None):
    """Every kind of evidence, all of it a function of each domain's loss and tokens."""
    domains = len(tokens)
    nats, tokens = jnp.asarray(loss * tokens, jnp.float32), jnp.asarray(tokens, jnp.int32)
    sums = LossSums(nats, tokens, squares=nats * 1.5)
    raw = nats - 3.0 * tokens
    excess = ExcessSums(jnp.maximum(raw, 0.0), raw, (tokens + 1) // 2, tokens)
    size = jnp.where(tokens > 0, jnp.asarray(loss, jnp.float32), 0.0)
    # Gradients in the directions of a common axis and one of their own.
    inner = jnp.outer(size, size) * (0.5 + 0.5 * jnp.eye(domains))
    alignment = Alignment(inner, size, size, jnp.float32(1e-3))
    even = jnp.full(domains, 1 / domains) if weights is None else weights
    evidence = {"excess": excess, "alignment": alignment}
    return Observation(sums, sums, jnp.zeros(domains), jnp.asarray(step), weights=even, evidence=evidence)


@functools.cache
def built(name, floor=0.0):
    """The same method each time it is asked for, which `jit` compiles once for each shape."""
    return with_floor(CONFIGS[name]().build(), floor)


TRACES = collections.Counter()


@functools.partial(jax.jit, static_argnums=0)
def one_update(method, targets, evidence):
    TRACES[method, jax.tree.structure((targets, evidence)), targets.prior.aval] += 1
    history = method.observe(method.init(targets), evidence)
    return method.update(targets.prior, history, targets)


@EVERY_METHOD
@pytest.mark.parametrize("domains", [1, 2, 4, 1000])
def test_weights_stay_on_the_simplex(name, domains):
    targets, loss, tokens = problem(0, domains)
    new = one_update(built(name), targets, observation(loss, tokens))
    assert (np.asarray(new) >= 0).all()
    np.testing.assert_allclose(np.asarray(new, np.float64).sum(), 1.0, atol=1e-5)


@EVERY_METHOD
@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=5, max_size=5),
    tokens=st.lists(st.integers(0, 10**6), min_size=5, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_evidence_keeps_weights_finite_on_the_simplex_and_above_the_floor(name, losses, tokens):
    targets, _, _ = problem(1, 5)
    method = built(name, FLOOR)
    with np.errstate(over="ignore", invalid="ignore"):
        evidence = observation(np.array(losses, np.float32), np.array(tokens), step=1, weights=targets.prior)
    new = np.asarray(one_update(method, targets, evidence))
    assert np.isfinite(new).all()
    assert new.min() >= FLOOR * (1 - 1e-5)
    np.testing.assert_allclose(new.sum(), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - PROBING - PLACED))
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
@settings(max_examples=20, deadline=None)
def test_permuting_domains_permutes_weights(name, seed, order):
    targets, loss, tokens = problem(seed, 4)
    order = np.array(order)
    method = built(name)
    straight = np.asarray(one_update(method, targets, observation(loss, tokens)))
    permuted = np.asarray(one_update(method, reordered(targets, order), observation(loss[order], tokens[order])))
    np.testing.assert_allclose(permuted, straight[order], rtol=1e-5, atol=1e-7)


@EVERY_METHOD
def test_jit_traces_once_per_shape(name):
    method = built(name)
    for domains in (4, 1, 4):
        for seed in range(3):
            targets, loss, tokens = problem(seed, domains)
            one_update(method, targets, observation(loss, tokens, step=seed))
    counts = [count for key, count in TRACES.items() if key[0] is method]
    assert len(counts) >= 2
    assert set(counts) == {1}


@EVERY_METHOD
def test_vmap_over_seeds_equals_a_loop(name):
    method = built(name)
    cases = [problem(seed, 4) for seed in range(5)]
    targets = jax.tree.map(lambda *rows: jnp.stack(rows), *(case[0] for case in cases))
    evidence = jax.tree.map(lambda *rows: jnp.stack(rows), *(observation(*case[1:]) for case in cases))
    mapped = jax.vmap(lambda t, e: one_update(method, t, e))(targets, evidence)
    looped = [one_update(method, case[0], observation(*case[1:])) for case in cases]
    np.testing.assert_allclose(mapped, np.stack(looped), rtol=1e-6)


@EVERY_METHOD
def test_a_method_can_be_scanned_over_and_keeps_its_dtype(name):
    method = CONFIGS[name]().build()
    targets, loss, tokens = problem(3, 4)

    def body(carry, step):
        weights, history = carry
        history = method.observe(history, observation(loss, tokens)._replace(step=step))
        weights = method.update(weights, history, targets)
        return (weights, history), weights

    # A scan refuses a carry whose type changes when it is traced; that it can be run is shown below.
    start = (targets.prior, method.init(targets))
    (last, history), path = jax.eval_shape(lambda: jax.lax.scan(body, start, jnp.arange(6)))
    assert path.shape == (6, 4)
    assert last.dtype == targets.prior.dtype
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), history) == jax.tree.map(
        lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), start[1]
    )


@EVERY_METHOD
def test_float64_is_kept(name):
    with jax.enable_x64(True):
        targets, loss, tokens = problem(4, 3, np.float64)
        new = jax.eval_shape(functools.partial(one_update, built(name)), targets, observation(loss, tokens))
        assert new.dtype == jnp.float64


@EVERY_METHOD
def test_no_evidence_at_all_moves_nothing(name):
    targets, loss, _ = problem(5, 4)
    new = one_update(built(name), targets, observation(loss, np.zeros(4, np.int64)))
    np.testing.assert_allclose(new, targets.prior, rtol=1e-6)


EXTREMES = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, 3.0], np.float32)


def path_of(method, targets, evidence):
    """Weights after each of a sequence of observations, stacked in front."""

    def body(carry, one):
        weights, history = carry
        history = method.observe(history, one._replace(weights=weights))
        weights = method.update(weights, history, targets)
        return (weights, history), weights

    return jax.lax.scan(body, (targets.prior, method.init(targets)), evidence)[1]


many_updates = functools.partial(jax.jit, static_argnums=0)(path_of)


@functools.cache
def sequence(seed, domains=4, length=12):
    """Observations of falling losses with noise, domains absent now and then, in single precision wherever made."""
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        return _sequence(seed, domains, length)


def _sequence(seed, domains, length):
    targets, loss, _ = problem(seed, domains)
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(1, length + 1):
        now = loss * (1 - 0.02 * step * rng.uniform(0.5, 1.5, domains)).astype(np.float32)
        tokens = rng.integers(100, 5000, domains) * (rng.random(domains) > 0.1)
        rows.append(observation(now, tokens, step=step))
    return targets, jax.tree.map(lambda *parts: jnp.stack(parts), *rows)


@EVERY_METHOD
@given(picks=st.lists(st.integers(0, len(EXTREMES) - 1), min_size=4 * 12, max_size=4 * 12))
@settings(max_examples=15, deadline=None)
def test_a_run_through_extreme_evidence_stays_on_the_simplex_and_above_the_floor(name, picks):
    targets, _, _ = problem(7, 4)
    losses = EXTREMES[np.array(picks)].reshape(12, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = [observation(loss, np.full(4, 100), step=step) for step, loss in enumerate(losses, 1)]
    evidence = jax.tree.map(lambda *parts: jnp.stack(parts), *rows)
    path = np.asarray(many_updates(built(name, FLOOR), targets, evidence))
    assert np.isfinite(path).all()
    assert path.min() >= FLOOR * (1 - 1e-5)
    np.testing.assert_allclose(path.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - FITTING))
def test_float32_stays_close_to_float64_over_a_run(name, record_property):
    targets, evidence = sequence(8)
    single = np.asarray(many_updates(built(name, FLOOR), targets, evidence), np.float64)
    with jax.enable_x64(True):
        targets, evidence = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == jnp.float32 else np.asarray(leaf),
            (targets, evidence),
        )
        double = np.asarray(many_updates(built(name, FLOOR), *jax.tree.map(jnp.asarray, (targets, evidence))))
    error = float(np.abs(single - double).max())
    record_property("largest error of a weight in float32", error)
    assert double.dtype == np.float64
    assert error < 1e-4


def ado_with_a_law(**numbers):
    """Its policy moves the weights from the first observation on; a fit on so few points is undetermined."""
    method = rules.ado(start=0, refit_every=0, ignore=0, stride=1, filter_window=1, capacity=4, **numbers)

    def init(targets):
        rows = ([1.0, 0.5, 1.5, 0.8], [0.6, 0.7, 0.5, 0.8], [0.4, 0.02, 0.3, 0.5])
        return with_law(method.init(targets), Law(*(jnp.array(row, targets.prior.dtype) for row in rows)))

    return method._replace(init=init)


HYPER = {
    "velocitune": (rules.velocitune, {"step_size": 1.5, "smoothing": 0.1, "min_gap": 1e-3}),
    "velocitune from_prior": (functools.partial(rules.velocitune, form="from_prior"), {"step_size": 1.5}),
    "dbl": (rules.dynamic_batch_loading, {"step_size": 0.5, "smoothing": 0.1}),
    "group_dro": (rules.group_dro, {"step_size": 0.2, "adjustment": 1.0}),
    "group_dro cvar": (rules.cvar_dro, {"alpha": 0.4, "decay": 0.2, "natural_share": 0.3}),
    "ado": (
        ado_with_a_law,
        {"credit_decay": 0.1, "policy_decay": 0.2, "credit_power": 0.5, "least_alpha": 0.05, "tokens_per_count": 100.0},
    ),
    "odm": (rules.odm, {"reward_scale": 0.2}),
    "odm paper": (functools.partial(rules.odm, form="paper"), {"memory": 0.7}),
    "skillit": (rules.skillit, {"step_size": 0.2}),
    "doremi": (rules.doremi, {"step_size": 0.3, "smoothing": 0.1, "first_score": 0.5}),
    "doge": (rules.doge, {"step_scale": 30.0, "smoothing": 0.1, "lowest": 0.0, "highest": 5.0, "max_norm": 2.0}),
    "aioli": (functools.partial(rules.aioli, hold=1), {"step_size": 0.5, "favour": 0.7, "memory": 0.2}),
    "grape": (rules.grape, {"step_scale": 30.0, "task_step": 5.0, "smoothing": 0.1}),
}
CASES = [pytest.param(name, field, id=f"{name}-{field}") for name, (_, fields) in HYPER.items() for field in fields]


@pytest.mark.parametrize(("name", "field"), CASES)
def test_vmap_over_a_hyper_parameter_equals_a_loop(name, field):
    centre = HYPER[name][1][field]
    values = jnp.linspace(0.8 * centre, 1.2 * centre, 3)
    path = jax.jit(functools.partial(_traced, name, field))
    mapped = jax.vmap(path)(values)
    looped = np.stack([path(value) for value in values])
    np.testing.assert_allclose(mapped, looped, rtol=2e-5, atol=1e-6)
    assert np.isfinite(mapped).all()


@pytest.mark.parametrize(("name", "field"), CASES)
def test_the_gradient_with_respect_to_a_hyper_parameter_is_finite_and_that_of_a_difference(name, field):
    centre = HYPER[name][1][field]
    pull = jnp.arange(1.0, 5.0)

    def last(value):
        return _traced(name, field, value)[-1] @ pull

    with jax.enable_x64(True):
        step = max(1e-5 * abs(centre), 1e-7)
        # One program for both: most of the time is compiling.
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(last)))(centre + step * jnp.arange(-1.0, 2.0))
        slope, difference = float(slopes[1]), float(values[2] - values[0]) / (2 * step)
    assert np.isfinite(slope)
    np.testing.assert_allclose(slope, difference, rtol=2e-3, atol=2e-3 * (1 + abs(difference)))


def _traced(name, field, value):
    """Weights over a run with a hyper-parameter that is traced: the method is built inside."""
    build, fields = HYPER[name]
    targets, evidence = sequence(9)
    if value.dtype == jnp.float64:
        targets, evidence = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, (targets, evidence)
        )
    return path_of(build(**{**fields, field: value}), targets, evidence)


AROUND = {
    "bounded": {"floor": 0.02, "ceiling": 0.9, "largest_change": 0.5, "trust_region": 0.4, "max_repeats": 30.0},
    "gated": {"gate": 0.5, "filter": Ema(half_life=1.5), "floor": 0.01},
}
SHORT = functools.partial(Ado, refit_every=0, ignore=0, stride=1, filter_window=1, capacity=16)
"""A record of the published length takes a minute to compile."""
AS_DATA = (
    {name: config() for name, config in CONFIGS.items() if name not in FITTING}
    | {
        f"{entry.name} {kind}": (SHORT if entry.config is Ado else entry.config)(**options)
        for entry in METHODS
        for kind, options in AROUND.items()
    }
    | {"ado": SHORT()}
    | {
        "velocitune median": Velocitune(filter=Median(), step_size=2.0),
        "velocitune local_level": Velocitune(filter=LocalLevel(drift=0.05, inflation=2.0), floor=0.1),
    }
)
"""Every method alone, once in all constraints, and once behind a filter and a gate; ADO's fit is in `test_ado`."""


@pytest.mark.parametrize("name", [name for name, config in AS_DATA.items() if numbers_of(config)])
def test_numbers_as_data_give_the_weights_of_numbers_as_constants_alone_and_mapped_over(name):
    config = AS_DATA[name]
    targets, evidence = sequence(10, length=6)

    def path(numbers):
        return path_of(with_numbers(config, numbers).build(), targets, evidence)

    numbers = numbers_of(config)
    traced = jax.jit(path)
    np.testing.assert_allclose(traced(numbers), many_updates(config.build(), targets, evidence), rtol=0, atol=1e-5)
    others = jax.tree.map(lambda value: 0.95 * value, numbers)
    assert structure_of(with_numbers(config, jax.tree.map(float, others))) == structure_of(config)
    together = jax.jit(jax.vmap(path))(jax.tree.map(lambda *rows: jnp.stack(rows), numbers, others))
    np.testing.assert_allclose(together, np.stack([traced(numbers), traced(others)]), rtol=0, atol=1e-5)


def test_a_floor_that_cannot_be_kept_is_refused():
    targets, loss, tokens = problem(6, 4)
    method = with_floor(CONFIGS["static"]().build(), 0.3)
    with pytest.raises(ValueError, match="at most 1/4 for 4 domains, got 0.3"):
        one_update(method, targets, observation(loss, tokens))
    with pytest.raises(ValueError, match="floor must not be negative, got -0.1"):
        with_floor(method, -0.1)
