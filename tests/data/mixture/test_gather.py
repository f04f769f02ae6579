import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.mixed import INTERVAL, LENGTH, assert_same, host_batches, quota, spec, stores
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.tokens.mapped import MappedTokens, TokenMap
from vtune_jax.data.tokens.rows import TokenRows
from vtune_jax.errors import UserError


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}, {"workers": 2, "chunk": 1}])
def test_threads_that_read_ahead_change_no_batch(options):
    batches, made = host_batches(65, **options)
    assert_same(host_batches(65)[0], batches)
    made.close()


def test_processes_that_read_ahead_change_no_batch_and_end_with_the_iterator():
    batches, made = host_batches(25, workers=2, worker_kind="processes")
    assert_same(host_batches(25)[0], batches)
    workers = list(made._pool._executor._processes.values())
    assert len(workers) > 0
    made.close()
    wait_for_end([worker.pid for worker in workers])


PARENT = """
import os, sys
from tests.data.mixed import host_batches
if __name__ == "__main__":
    batches, made = host_batches(5, workers=2, worker_kind="processes")
    print(*[worker.pid for worker in made._pool._executor._processes.values()], flush=True)
    os.kill(os.getpid(), 9)
"""


def test_worker_processes_end_when_their_parent_is_killed_and_leave_no_shared_memory(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shared = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    said = subprocess.run([sys.executable, script], cwd=root, env=environment, capture_output=True, text=True)
    assert said.returncode == -9
    workers = [int(word) for word in said.stdout.split()]
    assert workers
    wait_for_end(workers)
    if Path("/dev/shm").is_dir():
        assert set(Path("/dev/shm").iterdir()) <= shared


def wait_for_end(pids):
    # The system is asked, as `Process.is_alive` says yes while the executor's own thread is just reaping that process.
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_error_while_reading_is_raised_and_asking_again_tries_again():
    class Flaky(TokenRows):
        broken = True

        def read(self, rows):
            if self.broken:
                raise UserError("the tokens are lost", "bring them back")
            return super().read(rows)

    flaky = Flaky(stores()[1].tokens, LENGTH, name="flaky")
    for workers in (0, 2):
        mixed = (stores()[0], flaky, *stores()[2:])
        made = MixtureIterator(spec(), mixed, quota=quota(0), interval=INTERVAL, workers=workers)
        flaky.broken = True
        for _ in range(2):
            with pytest.raises(UserError, match="the tokens are lost"):
                next(made)
        flaky.broken = False
        assert_same(host_batches(8)[0], [next(made) for _ in range(8)])
        made.close()


def test_large_memory_maps_are_let_go_when_more_than_allowed_has_been_touched(monkeypatch, tmp_path):
    plain = MixtureIterator.from_stores(stores(), [0.25] * 4, batch=64, interval=1000, chunk=1)
    released, mapped_bytes = [], iter(range(0, 10**12, 40 << 20))
    monkeypatch.setattr("vtune_jax.data.mixture.gather.LARGE_BYTES", 0)
    monkeypatch.setattr("vtune_jax.data.mixture.gather._mapped_bytes", lambda: next(mapped_bytes))
    monkeypatch.setattr(TokenMap, "release", lambda file: released.append(file.path.name))
    mapped = []
    for store in stores():
        path = tmp_path / f"{store.name}.bin"
        store.tokens.tofile(path)
        mapped.append(TokenRows(MappedTokens.open(path, np.dtype(np.uint16), name=store.name), LENGTH))
    made = MixtureIterator.from_stores(mapped, [0.25] * 4, batch=64, interval=1000, chunk=1)
    # Two looks a step, 40 MiB more at each: the third look is past the 96 MiB.
    for released_so_far in (0, 8):
        np.testing.assert_array_equal(next(made)["tokens"], next(plain)["tokens"])
        assert len(released) == released_so_far
