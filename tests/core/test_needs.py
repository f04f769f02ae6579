import pytest

from vtune_jax.core.needs import NEEDS, assert_known
from vtune_jax.core.types import Observation
from vtune_jax.train.evidence.registry import kinds


def test_what_nothing_can_supply_is_refused_with_what_can_be():
    assert_known({"heldout", "graph"})
    with pytest.raises(ValueError, match=r"the method needs \['oracle'\], but what can be supplied is \['alignment', "):
        assert_known({"heldout", "oracle"})


@pytest.mark.parametrize("need", NEEDS.values(), ids=lambda need: need.name)
def test_evidence_is_a_field_of_the_observation_or_a_kind_that_a_file_supplies(need):
    assert NEEDS[need.name] is need
    assert need.evidence in ("", *Observation._fields, *(kind.name for kind in kinds()))
