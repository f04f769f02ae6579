"""Compiled programs are shared by all tests, and by the commands they start: most of the suite's time is compiling."""

import gc
import os
from pathlib import Path

import jax
import pytest

CACHE = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.3}


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    settings = {**CACHE, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


MOST_MAPPINGS = 20_000
"""Every compiled program takes several mappings of memory; Linux allows a process 65,530 of them by default."""


def pytest_runtest_teardown(item):
    """Lets compiled programs go before a long run of tests uses up what the kernel allows, and is killed for it."""
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()
