"""A kind of evidence is one file: the step gathers it, keeps it in the state and hands it to methods that need it."""

import jax.numpy as jnp
import numpy as np
import pytest

import vtune_jax.train.evidence
from tests import tiny
from tests.train.test_step import batch
from vtune_jax import rules
from vtune_jax.core.types import evidence
from vtune_jax.train.evidence import registry
from vtune_jax.train.state import start

WORST = '''
"""The largest loss of any token of each domain since the last update."""

import jax.numpy as jnp

from vtune_jax.core.needs import Need
from vtune_jax.train.evidence.kind import Evidence


def start(needs, domains, params):
    return jnp.zeros(domains)


def gather(gathered, context, learned):
    rows = jnp.where(learned.counted, learned.nats, 0.0).max(axis=1)
    return gathered.at[context.batch["domain"]].max(rows)


def observe(gathered, context, params, step):
    return gathered, jnp.zeros_like(gathered)


EVIDENCE = Evidence(
    "worst", start, gather, observe, needs=(Need("worst", "the largest loss of a token", evidence="worst"),)
)
'''


@pytest.fixture
def worst(tmp_path, monkeypatch):
    """A new kind of evidence, by one file, with the word by which methods ask for it."""
    (tmp_path / "worst.py").write_text(WORST)
    monkeypatch.setattr(vtune_jax.train.evidence, "__path__", [*vtune_jax.train.evidence.__path__, str(tmp_path)])
    for found in (registry.kinds, registry.known_needs):
        found.cache_clear()
    yield
    for found in (registry.kinds, registry.known_needs):
        found.cache_clear()


def test_a_kind_of_evidence_is_added_by_one_file_and_reaches_the_methods_that_need_it(worst):
    inner = rules.static()

    def observe(history, observation):
        found = evidence(observation, "worst", "the largest loss of a token")
        return inner.observe(history, observation)._replace(memory=found)

    def init(targets):
        return inner.init(targets)._replace(memory=jnp.zeros(tiny.DOMAINS))

    method = inner._replace(init=init, observe=observe, needs=inner.needs | {"worst"})
    step, state = tiny.jitted(method), start(tiny.params(), method, tiny.targets())
    expected = np.zeros(tiny.DOMAINS)
    for seed in range(2):
        nats, _ = tiny.model().losses(state.params, batch(seed))
        np.maximum.at(expected, np.asarray(batch(seed)["domain"]), np.asarray(nats).max(axis=1))
        np.testing.assert_array_equal(state.mixture.history.memory, 0.0)
        state, _ = step(state, batch(seed), tiny.constants(method=method, interval=2))
    np.testing.assert_allclose(state.mixture.history.memory, expected, rtol=1e-5)
    np.testing.assert_array_equal(state.mixture.evidence["worst"], 0.0)


def test_a_method_is_supplied_with_what_it_needs_and_no_more():
    def kinds(config):
        return [kind.name for kind in registry.needed(config.build().needs)]

    assert kinds(rules.Velocitune()) == kinds(rules.Static()) == []
    assert kinds(rules.DoReMi()) == ["excess"]
    assert kinds(rules.DoGE(towards="heldout")) == kinds(rules.DoGE()) == ["alignment"]
    assert tiny.state().mixture.evidence == {}
    assert tiny.state(rules.DoGE(keep_absent=False)).mixture.evidence == {"alignment": ()}
