import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.constraints import constrained, with_floor
from vtune_jax.core.types import LossSums, Observation, Targets
from vtune_jax.rules import static, velocitune

STILL = static()._replace(update=lambda weights, history, targets: weights)
"""A method that wants nothing changed."""


def observed(method, losses):
    tokens = jnp.full(len(losses), 1000)
    sums = LossSums(jnp.array(losses) * tokens, tokens)
    evidence = Observation(sums, sums, jnp.zeros(len(losses)), jnp.asarray(1))
    return method.observe(method.init(targets(len(losses))), evidence)


def targets(domains):
    return Targets(*(jnp.full(domains, value) for value in (3.0, 2.0, 0.0, 1 / domains)))


def test_weights_above_the_floor_stay_where_the_method_leaves_them():
    weights = jnp.array([0.7, 0.2, 0.06, 0.04])
    method = with_floor(STILL, 0.01)
    for _ in range(50):
        weights = method.update(weights, method.init(targets(4)), targets(4))
    np.testing.assert_allclose(weights, [0.7, 0.2, 0.06, 0.04], rtol=1e-4)


def test_a_weight_below_the_floor_is_raised_to_it_at_once():
    weights = jnp.array([0.999, 0.001])
    method = with_floor(STILL, 0.05)
    new = method.update(weights, method.init(targets(2)), targets(2))
    assert float(new[1]) >= 0.05
    np.testing.assert_allclose(new.sum(), 1.0, rtol=1e-6)


def test_a_domain_at_the_floor_rises_again_when_it_lags():
    method = with_floor(velocitune(), 0.01)
    weights, history = jnp.array([0.99, 0.01]), observed(method, [2.0, 3.0])
    for _ in range(20):
        weights = method.update(weights, history, targets(2))
    assert float(weights[1]) > 0.9


def test_no_floor_is_the_method_itself():
    method = velocitune()
    assert with_floor(method, 0.0) is method


@pytest.mark.parametrize("floor", [-0.1, 0.6])
def test_impossible_floors_are_refused(floor):
    def use():
        method = with_floor(static(), floor)
        method.update(jnp.full(2, 0.5), method.init(targets(2)), targets(2))

    with pytest.raises(ValueError, match="floor must"):
        use()


def path_of(method, targets, losses):
    history, weights, path = method.init(targets), targets.prior, [np.asarray(targets.prior)]
    for step, row in enumerate(losses, 1):
        tokens = jnp.full(len(row), 1000)
        sums = LossSums(jnp.asarray(row, jnp.float32) * 1000, tokens)
        history = method.observe(history, Observation(sums, sums, jnp.zeros(len(row)), jnp.asarray(step)))
        weights = method.update(weights, history, targets)
        path.append(np.asarray(weights))
    return np.array(path)


def steep(domains, seed=0, **constants):
    """Domains whose gaps to the target differ by nats: a rule that collapses within a few updates."""
    rng = np.random.default_rng(seed)
    prior = jnp.asarray(rng.dirichlet(np.full(domains, 2.0)), jnp.float32)
    targets = Targets(jnp.full(domains, 5.0), jnp.full(domains, 1.0), jnp.zeros(domains), prior, dict(constants))
    return targets, rng.uniform(1.5, 9.0, (12, domains))


METHOD = rules.dynamic_batch_loading(smoothing=0.0)


def test_without_constraints_that_problem_collapses():
    targets, losses = steep(5)
    assert path_of(METHOD, targets, losses)[-1].max() > 0.99


def test_a_ceiling_holds_and_lets_the_others_keep_their_proportions():
    targets, losses = steep(5)
    path = path_of(constrained(METHOD, ceiling=0.4), targets, losses)[1:]
    assert path.max() <= 0.4 * (1 + 1e-6)
    np.testing.assert_allclose(path.sum(axis=1), 1, rtol=1e-5)
    one = path_of(constrained(METHOD, ceiling=0.4), targets, losses[:1])[1]
    free = path_of(METHOD, targets, losses[:1])[1]
    below = one < 0.4 * (1 - 1e-6)
    ratio = one[below] / free[below]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_no_weight_changes_by_more_than_the_largest_change():
    targets, losses = steep(5)
    path = path_of(constrained(METHOD, largest_change=0.1), targets, losses)
    ratio = path[1:] / path[:-1]
    assert ratio.max() <= 1.1 * (1 + 1e-5)
    assert ratio.min() >= (1 - 1e-5) / 1.1
    assert ratio.max() > 1.09


def test_the_trust_region_holds_and_is_used_up():
    targets, losses = steep(5)
    path = path_of(constrained(METHOD, trust_region=0.05), targets, losses)[1:].astype(np.float64)
    prior = np.asarray(targets.prior, np.float64)
    spread = (path * np.log(path / prior)).sum(axis=1)
    assert spread.max() <= 0.05 * (1 + 1e-3)
    assert spread.max() > 0.049


def test_no_domain_is_read_more_often_than_asked():
    sizes = jnp.array([1e3, 2e3, 5e4, 1e5, 1e5])
    targets, losses = steep(5, sizes=sizes, budget=jnp.asarray(1e5))
    path = path_of(constrained(METHOD, max_repeats=2.0), targets, losses)[1:]
    repeats = path.mean(axis=0) * 1e5 / np.asarray(sizes)
    assert repeats.max() <= 2.0 * (1 + 1e-5)
    assert "sizes" in constrained(METHOD, max_repeats=2.0).needs


def test_all_constraints_hold_together():
    sizes = jnp.array([4e3, 2e4, 5e4, 1e5, 1e5])
    targets, losses = steep(5, sizes=sizes, budget=jnp.asarray(1e5))
    # A prior that obeys the bounds.
    targets = targets._replace(prior=jnp.array([0.06, 0.2, 0.24, 0.25, 0.25]))
    method = constrained(METHOD, floor=0.03, ceiling=0.45, largest_change=0.2, trust_region=0.1, max_repeats=2.0)
    path = path_of(method, targets, losses).astype(np.float64)
    prior = np.asarray(targets.prior, np.float64)
    assert path.min() >= 0.03 * (1 - 1e-5)
    assert path.max() <= 0.45 * (1 + 1e-5)
    assert (path * 1e5 / np.asarray(sizes)).max() <= 2.0 * (1 + 1e-5)
    assert (path[1:] / path[:-1]).max() <= 1.2 * (1 + 1e-4)
    assert (path[:-1] / path[1:]).max() <= 1.2 * (1 + 1e-4)
    assert (path * np.log(path / prior)).sum(axis=1).max() <= 0.1 * (1 + 1e-3)
    assert np.abs(path[-1] - prior).max() > 0.05


def test_a_prior_outside_the_bounds_is_inside_them_after_one_update():
    targets, losses = steep(3)
    targets = targets._replace(prior=jnp.array([0.98, 0.01, 0.01]))
    path = path_of(constrained(METHOD, floor=0.05, ceiling=0.5, largest_change=0.1), targets, losses)[1:]
    assert path.min() >= 0.05 * (1 - 1e-5)
    assert path.max() <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 0.3}, "floor must be at most 1/5 for 5 domains, got 0.3"),
        ({"floor": -0.1}, r"floor must lie in \[0, 1\], got -0.1"),
        ({"ceiling": 0.1}, "ceiling must be at least 1/5 for 5 domains, got 0.1"),
        ({"ceiling": 1.5}, r"ceiling must lie in \[0, 1\], got 1.5"),
        ({"floor": 0.15, "ceiling": 0.1}, "floor must not lie above ceiling = 0.1, got 0.15"),
        ({"largest_change": 0.0}, "largest_change must be positive, got 0.0"),
        ({"largest_change": -1.0}, "largest_change must not be negative, got -1.0"),
        ({"trust_region": -1.0}, "trust_region must not be negative, got -1.0"),
        ({"max_repeats": 0.5}, r"max_repeats must be at least 0\.667 for the budget, got 0.5"),
        ({"max_repeats": float("nan")}, "max_repeats must not be negative, got nan"),
    ],
)
def test_contradictory_constraints_are_refused(options, message):
    targets, _ = steep(5, sizes=jnp.full(5, 3e4), budget=jnp.asarray(1e5))
    with pytest.raises(ValueError, match=message):
        constrained(METHOD, **options).init(targets)


def test_repeats_without_sizes_are_refused():
    targets, _ = steep(5)
    with pytest.raises(ValueError, match='targets.constants must hold "sizes"'):
        constrained(METHOD, max_repeats=2.0).init(targets)
