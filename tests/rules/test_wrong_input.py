"""Methods and `Mixer` say what they were given and what they want; counts may be as large as they like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.filters import Ema, LocalLevel
from vtune_jax.core.types import Alignment, ExcessSums, LossSums, Observation, Targets

PRIOR, INITIAL, TARGET, LOSSES = [0.5, 0.3, 0.2], [4.0, 4.0, 4.0], [2.0, 3.0, 3.5], [3.0, 3.2, 3.9]
SIZES = {"sizes": [1000, 2000, 3000], "budget": 5000, "graph": np.eye(3)}

pytestmark = pytest.mark.usefixtures("without_annotations")


def mixer(method=None, **constants):
    return rules.Mixer(method or rules.velocitune(), PRIOR, initial=INITIAL, target=TARGET, **constants)


def updated(method=None, **evidence):
    return mixer(method).update(1, **{"heldout": LOSSES, **evidence})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: rules.Mixer(rules.Velocitune, PRIOR), "method must be a value such as .*, got the class Velocitune"),
        (lambda: rules.Mixer("velocitune", PRIOR), "method must be a value such as .*, got 'velocitune'"),
        (
            lambda: rules.Mixer(rules.velocitune, PRIOR),
            "method must be .*, got the function velocitune",
        ),
        (lambda: rules.MethodConfig(), "MethodConfig is no method"),
        (lambda: rules.Mixer(rules.static(), [3, 5]), r"prior must be shares .* got \[3.0, 5.0\] with sum 8"),
        (lambda: rules.Mixer(rules.static(), "ab"), "prior must be numbers, got 'ab'"),
        (
            lambda: rules.Mixer(rules.velocitune(), PRIOR, initial=[np.nan] * 3, target=TARGET),
            "initial must hold a loss",
        ),
        (lambda: mixer(sizez=[1, 2, 3]), "Mixer takes budget, graph, sizes as constants, got sizez"),
        (lambda: mixer(sizes=[1, 2]), "sizes must hold 3 numbers, one per domain"),
        (lambda: mixer(sizes=[1, 2, np.nan]), "sizes must be positive and finite"),
        (lambda: mixer(graph=np.eye(3) * np.nan), "graph must be finite"),
        (lambda: mixer(rules.cvar_dro()), 'targets.constants must hold "sizes"'),
        (lambda: mixer(rules.skillit(learn_graph=True)), 'targets.constants must hold "graph"'),
    ],
)
def test_a_mixer_is_made_of_a_method_shares_and_known_constants(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


TWO, THREE = np.ones(2), np.ones(3)


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ({"heldout": "abc"}, "heldout must be numbers, got 'abc'"),
        ({"heldout": [LOSSES]}, "heldout must hold 3 numbers, one per domain"),
        ({"heldout_tokens": [np.nan, 1, 1]}, r"heldout_tokens must be whole numbers in \[0, 2\*\*53\], got \[nan"),
        ({"heldout_tokens": [-1, 1, 1]}, "heldout_tokens must be whole numbers"),
        ({"heldout_tokens": [0.5, 1, 1]}, "heldout_tokens must be whole numbers"),
        ({"heldout_tokens": [1e17, 1, 1]}, "heldout_tokens must be whole numbers"),
        ({"train_tokens": [1, 1, 1]}, "train must be given where train_tokens is, got None"),
        ({"heldout_squares": [-1.0, 1, 1]}, "heldout_squares must not be negative"),
        ({"excess": (THREE,) * 4}, "excess must be ExcessSums of arrays"),
        ({"excess": ExcessSums(TWO, THREE, THREE, THREE)}, "excess.clipped must hold 3 numbers"),
        ({"alignment": {"inner": 1}}, "alignment must be Alignment of arrays"),
        ({"alignment": Alignment(np.eye(3), THREE, TWO, 0.1)}, r"alignment.inner must hold numbers of shape \(3, 2\)"),
        ({"alignment": Alignment(np.eye(3), THREE, THREE, THREE)}, "alignment.learning_rate must hold one number"),
    ],
)
def test_evidence_is_refused_by_name_and_changes_nothing(evidence, message):
    one = mixer()
    before = jax.tree.leaves(one.state)
    with pytest.raises((TypeError, ValueError), match=message):
        one.update(1, **{"heldout": LOSSES, **evidence})
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(one.state), before)


@pytest.mark.parametrize("step", [None, "7", 1.5, -1, 2**40, [1, 2]])
def test_a_step_is_a_whole_number_that_the_history_holds(step):
    with pytest.raises((TypeError, ValueError), match=r"step must (be a whole number|not be|lie in)"):
        mixer().update(step, heldout=LOSSES)


def test_evidence_under_jit_is_refused_with_a_reason():
    with pytest.raises(TypeError, match="heldout must be numbers, got a traced array"):
        jax.jit(lambda losses: updated(heldout=losses))(jnp.array(LOSSES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "state must be a dictionary as `Mixer.state` gives it, got None"),
        (lambda state: {}, "state must have the parts of this method's state"),
        (lambda state: state | {"more": 1}, r"one that differs in \['more'\]"),
        (lambda state: state | {"history": state["history"]._asdict()}, "state must have the parts"),
        (lambda state: state | {"weights": np.full(3, np.nan, np.float32)}, "must be shares .* got .*nan"),
        (lambda state: state | {"weights": np.zeros(3, np.float32)}, "must be shares"),
        (lambda state: state | {"weights": "abc"}, r"state\['weights'\] must be an array of shape \(3,\)"),
        (lambda state: state | {"trained": np.full(3, np.nan)}, "must not be negative, got .*nan"),
        (lambda state: state | {"history": state["history"]._replace(entries=np.float32(1.5))}, "entries must be"),
        (lambda state: mixer(rules.skillit()).state, "one that differs in .*memory.evaluations"),
        (lambda state: rules.Mixer(rules.static(), [0.5, 0.5]).state, "must be an array of shape"),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(change, message):
    one, same = mixer(), mixer()
    for each in (one, same):
        each.update(1, heldout=LOSSES)
    with pytest.raises((TypeError, ValueError), match=message):
        one.state = change(one.state)
    np.testing.assert_array_equal(one.update(2, heldout=LOSSES), same.update(2, heldout=LOSSES))


def test_a_state_with_counts_in_integers_goes_on():
    one, same = mixer(), mixer()
    for each in (one, same):
        each.update(1, heldout=LOSSES, heldout_tokens=[10, 20, 30])
    history = one.state["history"]
    one.state = one.state | {"history": history._replace(tokens=history.tokens.astype(np.int32))}
    np.testing.assert_array_equal(one.update(2, heldout=[np.nan] * 3), same.update(2, heldout=[np.nan] * 3))


def rows():
    return np.random.default_rng(3).uniform(2.0, 3.9, (4, 3)).astype(np.float32)


def path(config, tokens, scale=1, **options):
    """Weights after each of four updates behind counts of `tokens * scale`."""
    one = rules.Mixer(config, PRIOR, initial=INITIAL, target=TARGET, **SIZES)
    found = []
    for step, row in enumerate(rows(), 1):
        counts = np.array(tokens) * scale
        means = {"heldout": row, "heldout_tokens": counts, "train": row, "train_tokens": counts}
        sums = row * counts
        excess = ExcessSums(sums, sums, counts, counts)
        found.append(one.update(step, **means, excess=excess))
    return np.stack(found), one


BY_MEANS = {
    "velocitune": rules.Velocitune(),
    "velocitune filtered": rules.Velocitune(filter=Ema()),
    "dbl": rules.DynamicBatchLoading(),
    "group_dro": rules.GroupDro(step_size=1.0),
    "group_dro cvar": rules.GroupDro(form="cvar", decay=1.0),
    "odm": rules.Odm(),
    "skillit": rules.SkillIt(),
    "doremi": rules.DoReMi(),
}
COUNTS = [10**10, 3 * 10**10, 7 * 10**11]
"""Of the size of those between two updates of a large run, and beyond what 32-bit integers hold."""


@pytest.mark.parametrize("name", BY_MEANS)
def test_counts_beyond_32_bits_move_weights_exactly_as_proportionally_smaller_ones(name):
    large, one = path(BY_MEANS[name], COUNTS)
    # A power of two changes no bit of a mean in single precision.
    small, _ = path(BY_MEANS[name], np.array(COUNTS) // 2**10)
    assert (np.abs(np.diff(large, axis=0)) > 1e-4).any()
    np.testing.assert_array_equal(large, small)
    np.testing.assert_array_equal(one.state["trained"], 4 * np.array(COUNTS))


@pytest.mark.parametrize("tokens", [1e10, 10**10, np.float32(1e10)])
def test_means_behind_large_counts_are_those_behind_one_token(tokens):
    np.testing.assert_allclose(updated(heldout_tokens=[tokens] * 3), updated(), rtol=1e-6)


def test_a_method_that_reads_counts_themselves_is_given_them():
    config = rules.Ado(tokens_per_count=1024.0, refit_every=0, ignore=0, stride=1, filter_window=1, capacity=4)
    _, one = path(config, COUNTS)
    np.testing.assert_allclose(one.state["history"].memory.counts, 4 * sum(COUNTS) / 1024, rtol=1e-6)


def test_the_sampling_error_that_a_filter_reads_falls_with_large_counts():
    def variance(tokens):
        one = mixer(rules.Velocitune(filter=LocalLevel(drift=0.0)))
        one.update(1, heldout=LOSSES, heldout_tokens=[tokens] * 3, heldout_squares=np.square(LOSSES) * 2)
        return one.state["history"].memory.heldout.variance

    np.testing.assert_allclose(variance(2**40), np.square(LOSSES) / 2**40, rtol=1e-5)


CONSTANTS = Targets(*(jnp.array(row, jnp.float32) for row in (INITIAL, TARGET, [0.0] * 3, PRIOR)))


def seen(domains=3, tokens=None):
    sums = LossSums(jnp.full(domains, 3.0), jnp.ones(domains, jnp.int32) if tokens is None else tokens)
    return Observation(sums, sums, jnp.zeros(domains), jnp.asarray(1))


METHOD = rules.velocitune()


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["eager", "traced"])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda h: METHOD.init(CONSTANTS._replace(prior=jnp.ones((2, 2)))), "targets.prior must hold one share"),
        (lambda h: METHOD.init(CONSTANTS._replace(initial=jnp.ones(2))), r"targets.initial must have shape \(3,\)"),
        (lambda h: METHOD.observe(h, None), "observation must be Observation, got None"),
        (lambda h: METHOD.observe(h, seen(1)), r"observation.heldout.nats must have shape \(3,\), got \(1,\)"),
        (lambda h: METHOD.observe(h, seen(tokens=jnp.full(3, 1e10))), "observation.heldout.tokens must be integers"),
        (lambda h: METHOD.observe(h, seen(tokens=np.full(3, 10**10))), "observation.heldout.tokens must be at most"),
        (lambda h: METHOD.update(jnp.ones(1), h, CONSTANTS), r"weights must have shape \(3,\), got \(1,\)"),
        (lambda h: METHOD.update(jnp.array([1, 0, 0]), h, CONSTANTS), "weights must be an array of floats"),
        (lambda h: METHOD.update(PRIOR, h, CONSTANTS), "weights must be an array, got"),
        (lambda h: METHOD.update(jnp.array(PRIOR), tuple(h), CONSTANTS), "history must be LossHistory"),
    ],
)
def test_pure_functions_look_at_types_and_shapes_when_called_or_traced(act, message, wrap):
    history = METHOD.init(CONSTANTS)
    with pytest.raises((TypeError, ValueError), match=message):
        wrap(act)(history)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: rules.velocitune(step_size="1"), "step_size must be a number, got '1'"),
        (lambda: rules.velocitune(step_size=np.ones(3)), "step_size must be a number, got"),
        (lambda: rules.velocitune(step_size=jnp.ones(3)), r"step_size must be a number, got an array of shape \(3,\)"),
        (lambda: rules.velocitune(smoothing=jnp.float32(2)), r"smoothing must lie in \[0, 1\], got 2.0"),
        (lambda: rules.Velocitune(clamp="no"), "clamp must be True or False, got 'no'"),
        (lambda: rules.Velocitune(filter="ema"), "filter must be a NoFilter or .*, got 'ema'"),
        (lambda: rules.Velocitune(filter=Ema), "filter must be .*, got the class Ema"),
        (lambda: rules.SkillIt(window=2.5), "window must be a whole number, got 2.5"),
        (lambda: rules.SkillIt(masked="01"), "masked must be a tuple, each entry a whole number, got '01'"),
        (lambda: rules.skillit(graph=[1.0, 2.0]), "graph must be a tuple, each entry a tuple"),
        (lambda: rules.Static(form="stratified", groups="ab"), "groups must be a tuple, each entry a text, got 'ab'"),
        (lambda: rules.RegMix(domain_weights=(np.nan, 1.0)), "domain_weights must be positive and finite"),
        (lambda: rules.Ado(capacity="8"), "capacity must be a whole number, got '8'"),
        (lambda: rules.DoGE(lowest="a"), "lowest must be a number, got 'a'"),
        (lambda: rules.prior_weights([1, 2], np.nan), "power must not be negative, got nan"),
        (lambda: rules.prior_weights([1, np.inf]), "tokens must be positive in every domain"),
        (lambda: rules.prior_weights([[1, 2]]), "tokens must hold one number per domain"),
        (lambda: rules.prior_weights([]), "tokens must hold one number per domain"),
        (lambda: rules.prior_weights("ab"), "tokens must be numbers, got 'ab'"),
        (lambda: rules.unimax_weights([1, 2], np.inf, 1), "budget and max_epochs must be positive"),
        (lambda: rules.unimax_weights([1, 2], "5", 1), "budget must be a number, got '5'"),
        (lambda: rules.stratified_weights([1, 2], "ab"), "groups must be a sequence of names, got 'ab'"),
        (lambda: rules.stratified_weights([1, 2], None), "groups must be a sequence of names, got None"),
    ],
)
def test_options_of_another_type_are_refused_by_name(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
