import os

import pytest

from vtune_jax.errors import UserError
from vtune_jax.machine.work import do_all


def _die(number):
    os._exit(9)


def test_a_worker_that_is_killed_is_told():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(do_all(_die, [1, 2], workers=2))
