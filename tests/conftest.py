"""Compiled programs, prepared corpora and base models are shared by all tests, workers and commands they start.

Most of the suite's time is compiling.
"""

import gc
import os
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.stages.experiment import write_experiment
from vtune_jax.stages.store import locked

hypothesis.settings.register_profile("any machine", deadline=None)  # no test depends on how fast it is
hypothesis.settings.load_profile("any machine")

FLAGS = ["--xla_backend_optimization_level=0"]
"""Programs of tests are small and run a few times: compiling them well takes longer than running them badly."""
if jax.__version_info__ < (0, 11):
    # Newer versions do not know it, and end the process at a flag they do not know.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
# XLA reads them when its first device starts; what the user sets comes later and wins.
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that the workers of one run of the suite have in common."""
    base = tmp_path_factory.getbasetemp()
    # Under xdist each worker has a folder of its own in that of the run.
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _compile_once(shared_folder):
    # A folder given from outside outlives the run: handy while one works on a test.
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(shared_folder / "compiled")
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def small(shared_folder):
    """The config of the small experiment, beside its corpora."""
    folder = shared_folder / "small"
    with locked(folder, lambda: None):
        if not (folder / "small.toml").exists():
            write_experiment(folder)
    return folder / "small.toml"


@pytest.fixture(scope="session")
def store(shared_folder):
    """Finished stages, for every test that does not look at how they are made."""
    return shared_folder / "store"


MOST_MAPPINGS = 20_000
"""Every compiled program takes several mappings of memory; Linux allows a process 65,530 of them by default."""


def pytest_runtest_teardown(item):
    """Lets compiled programs go before a long run of tests uses up what the kernel allows, and is killed for it."""
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()
