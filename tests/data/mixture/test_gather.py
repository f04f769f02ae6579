import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.mixed import INTERVAL, LENGTH, assert_same, host_batches, quota, spec, stores
from vtune_jax.data.mixture.gather import RowReader
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.tokens.mapped import CHECK_BYTES, MappedTokens, TokenMap, checksums
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
import os
if __name__ == "__main__":  # each worker imports this file too
    from tests.data.mixed import host_batches
    batches, made = host_batches(5, workers=2, worker_kind="processes")
    print(*[worker.pid for worker in made._pool._executor._processes.values()], flush=True)
    os.kill(os.getpid(), 9)
"""


def test_worker_processes_end_when_their_parent_is_killed_and_leave_no_shared_memory(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    known = shared_memory()
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.run([sys.executable, script], cwd=root, env=environment, capture_output=True, text=True)
    assert parent.returncode == -9
    workers = [int(word) for word in parent.stdout.split()]
    assert workers
    wait_for_end(workers)
    # Other programs may use shared memory meanwhile; what is left behind is what no living process has mapped.
    deadline = time.monotonic() + 60
    while left_behind := shared_memory() - known - mapped_files():
        assert time.monotonic() < deadline, left_behind
        time.sleep(0.2)


def shared_memory():
    folder = Path("/dev/shm")
    return {str(path) for path in folder.iterdir()} if folder.is_dir() else set()


def mapped_files():
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            found |= {line.partition("/")[1] + line.partition("/")[2] for line in maps.read_text().splitlines()}
    return found


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


def test_domains_of_one_file_are_read_by_one_gather_and_told_apart(tmp_path):
    array = np.random.default_rng(0).integers(1, 60_000, 3 * CHECK_BYTES).astype(np.uint16)
    path = tmp_path / "all.bin"
    array.tofile(path)
    file = TokenMap(path, array.dtype, checks=checksums(array))
    cuts = [0, 70_000, 110_000, len(array)]
    sections = [
        MappedTokens(file, name=f"d{index}", first=first, count=last - first)
        for index, (first, last) in enumerate(itertools.pairwise(cuts))
    ]
    shared = RowReader([TokenRows(section, LENGTH) for section in sections])
    apart = RowReader([TokenRows(section.array, LENGTH) for section in sections])
    rng = np.random.default_rng(0)
    domain = rng.integers(0, 3, 500).astype(np.int32)
    row = (rng.random(500) * np.array([len(store) for store in apart.stores])[domain]).astype(np.uint32)
    np.testing.assert_array_equal(shared.read(domain, row)["tokens"], apart.read(domain, row)["tokens"])
    assert shared.in_one_gather
    assert not apart.in_one_gather
    with pytest.raises(IndexError, match="a row past the end was asked for"):
        shared.read(np.array([0], np.int32), np.array([70_000 // LENGTH], np.uint32))
    array[90_000] ^= 1
    array.tofile(path)
    again = pickle.loads(pickle.dumps(shared))
    with pytest.raises(UserError, match="domain 'd1' are damaged"):
        again.read(np.array([1], np.int32), np.array([20_000 // LENGTH], np.uint32))
    again.read(np.array([2], np.int32), np.array([2000], np.uint32))
