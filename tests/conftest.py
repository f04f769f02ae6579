"""Compiled programs are shared by all tests, and by the commands they start: most of the suite's time is compiling."""

import os

import jax
import pytest

CACHE = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.3}


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    settings = {**CACHE, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
