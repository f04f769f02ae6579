"""A batch over several devices; what they compute is in tests/train/test_devices.py."""

import jax
import pytest

from vtune_jax.errors import UserError
from vtune_jax.machine.mesh import data_mesh


def test_a_batch_that_cannot_be_split_is_told_with_the_field(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [object(), object()])
    with pytest.raises(UserError, match="a batch of 3 rows cannot be split over 2 devices") as told:
        data_mesh(3)
    assert told.value.fix == "set data.batch to a multiple of 2"
