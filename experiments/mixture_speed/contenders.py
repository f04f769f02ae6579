"""The pipelines that are compared, each an endless iterator of batches [rows, tokens]; run as a process by `measure`.

    python experiments/mixture_speed/contenders.py NAME FOLDER ROW_TOKENS BATCH

Reads lines with a number of seconds, works that long, and answers with tokens, wall and CPU seconds as JSON. It imports
nothing of its neighbours, so that a peer can run in an environment of its own.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

INTERVAL = 50  # steps between changes of weights
WEIGHTS = (0.45, 0.3, 0.2, 0.05)


def files(folder: Path) -> list[np.ndarray]:
    return [np.memmap(folder / f"{index}.bin", np.uint16, "r") for index in range(4)]


def numpy_limit(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """A gather of random rows of one array, chosen beforehand: no planning, no domains, nothing to resume."""
    array = np.memmap(folder / "all.bin", np.uint16, "r")
    rows = array[: len(array) // length * length].reshape(-1, length)
    chosen = np.random.default_rng(0).integers(0, len(rows), (max(64, 2_000_000 // batch), batch))
    while True:
        for index in chosen:
            yield np.take(rows, index, axis=0)


def _moving(iterator, batch: int) -> Iterator[np.ndarray]:  # type: ignore[no-untyped-def]
    rng, step = np.random.default_rng(0), 0
    while True:
        if step and step % INTERVAL == 0:
            edges = np.round(rng.dirichlet(np.ones(4)).cumsum() * 2**24).astype(np.int64)
            edges[-1] = 2**24
            iterator.post(step // INTERVAL, np.diff(edges, prepend=0).astype(np.uint32))
        yield next(iterator)["tokens"]
        step += 1


def ours(folder: Path, length: int, batch: int, **options: object) -> Iterator[np.ndarray]:
    """All domains in one file, as `vtune-jax prepare` writes them."""
    from vtune_jax.data import MappedTokens, MixtureIterator, TokenRows
    from vtune_jax.data.tokens.mapped import TokenMap

    file, each = TokenMap(folder / "all.bin", np.dtype(np.uint16)), len(files(folder)[0])
    stores = [
        TokenRows(MappedTokens(file, name=str(index), first=index * each, count=each), length) for index in range(4)
    ]
    yield from _moving(MixtureIterator.from_stores(stores, WEIGHTS, batch=batch, interval=INTERVAL, **options), batch)


def ours_file_per_domain(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    from vtune_jax.data import MixtureIterator, TokenRows

    stores = [TokenRows(array, length, name=str(index)) for index, array in enumerate(files(folder))]
    yield from _moving(MixtureIterator.from_stores(stores, WEIGHTS, batch=batch, interval=INTERVAL), batch)


def ours_thread(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    yield from ours(folder, length, batch, workers=1)


def ours_records(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """ArrayRecord shards, 32,768 tokens to a record, read in blocks of half a million tokens."""
    from vtune_jax.data import BlockRows, MixtureIterator, RecordTokens

    counts = [len(array) for array in files(folder)]
    stores = [
        BlockRows(
            RecordTokens([str(folder / f"{index}.array_record")], [count], np.dtype(np.uint16), name=str(index)),
            length,
            block=(1 << 19) // length,
        )
        for index, count in enumerate(counts)
    ]
    yield from _moving(MixtureIterator.from_stores(stores, WEIGHTS, batch=batch, interval=INTERVAL), batch)


def grain_static(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """`MapDataset.mix`, batched before it becomes an iterator, without threads: its fastest form for memory maps."""
    import grain

    class Source:
        def __init__(self, array: np.ndarray) -> None:
            self._rows = array[: len(array) // length * length].reshape(-1, length)

        def __len__(self) -> int:
            return len(self._rows)

        def __getitem__(self, index: int) -> np.ndarray:
            return self._rows[index]

    domains = [
        grain.MapDataset.source(Source(array)).seed(index).shuffle().repeat(None)
        for index, array in enumerate(files(folder))
    ]
    mixed = grain.MapDataset.mix(domains, weights=list(WEIGHTS)).batch(batch)
    yield from mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def hf_map(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """`interleave_datasets` of map-style datasets, which precomputes its indices."""
    from datasets import interleave_datasets

    mixed = interleave_datasets(_hf(folder, length), probabilities=list(WEIGHTS), seed=0, stopping_strategy=_ALL)
    mixed = mixed.with_format("numpy")
    while True:
        for start in range(0, len(mixed) - batch, batch):
            yield mixed[start : start + batch]["tokens"]


def hf_iterable(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    from datasets import interleave_datasets

    parts = [part.to_iterable_dataset() for part in _hf(folder, length)]
    mixed = interleave_datasets(parts, probabilities=list(WEIGHTS), seed=0, stopping_strategy=_ALL)
    while True:
        for rows in mixed.with_format("numpy").iter(batch):
            yield np.asarray(rows["tokens"])


_ALL = "all_exhausted"


def _hf(folder: Path, length: int) -> list:  # type: ignore[type-arg]
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    found = []
    for array in files(folder):
        # A tenth of the tokens: the map form computes its indices before the measured time, which would take long.
        values = pa.array(array[: len(array) // 10 // length * length])
        rows = pa.FixedSizeListArray.from_arrays(values, length)
        found.append(Dataset(InMemoryTable(pa.table({"tokens": rows}))))
    return found


def mosaicml(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """`StreamingDataset` with proportions, read sample by sample and stacked, as a collating loader does."""
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    streams = []
    for index, array in enumerate(files(folder)):
        out = folder / f"mds-{length}-{index}"
        if not (out / "index.json").exists():
            with MDSWriter(out=str(out), columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
                for row in array[: 4000 * length].reshape(-1, length):
                    writer.write({"tokens": row})
        streams.append(Stream(local=str(out), proportion=WEIGHTS[index]))
    dataset = StreamingDataset(streams=streams, shuffle=True, batch_size=batch, epoch_size=1_000_000)
    samples: list[np.ndarray] = []
    while True:
        for sample in dataset:
            samples.append(sample["tokens"])
            if len(samples) == batch:
                yield np.stack(samples)
                samples = []


def _device(folder: Path, length: int, batch: int, planned: bool) -> Iterator[np.ndarray]:
    import jax
    import jax.numpy as jnp

    from vtune_jax.data.mixture.on_device import build_table, gather
    from vtune_jax.data.mixture.plan import plan_steps
    from vtune_jax.data.mixture.spec import PlanSpec, start_cursor
    from vtune_jax.data.tokens.rows import TokenRows

    stores = [TokenRows(array, length, name=str(index)) for index, array in enumerate(files(folder))]
    spec = PlanSpec(rows=tuple(map(len, stores)), batch=batch, seed=0)
    table = build_table(stores)
    quota = jnp.asarray(np.array([7549747, 5033165, 3355443, 838861], np.uint32))
    tokens, total = table.rows["tokens"], sum(map(len, stores))

    # Without the sum, which stands for training, the compiler would leave the gather out.
    @jax.jit
    def ours(carry):  # type: ignore[no-untyped-def]
        step, cursor, seen = carry
        plan, cursor = plan_steps(jnp, spec, step, INTERVAL, quota, cursor)

        def body(seen, planned):  # type: ignore[no-untyped-def]
            batch = gather(table, length, *planned)
            return seen + batch["tokens"].astype(jnp.uint32).sum(dtype=jnp.uint32), None

        seen, _ = jax.lax.scan(body, seen, (plan.domain, plan.row))
        return step + np.uint32(INTERVAL), cursor, seen

    @jax.jit
    def bare(carry):  # type: ignore[no-untyped-def]
        def body(carry, index):  # type: ignore[no-untyped-def]
            key, seen = carry
            place = index[:, None] * np.uint32(length) + jnp.arange(length + 1, dtype=jnp.uint32)
            return (key, seen + tokens[place].astype(jnp.uint32).sum(dtype=jnp.uint32)), None

        return jax.lax.scan(body, carry, chosen)[0]

    rng = np.random.default_rng(0)
    chosen = jnp.asarray(rng.integers(0, total - 4, (INTERVAL, batch)), jnp.uint32)
    carry = (jnp.uint32(0), start_cursor(4), jnp.uint32(0)) if planned else (jnp.uint32(0), jnp.uint32(0))
    run = ours if planned else bare
    shape = np.broadcast_to(np.uint16(0), (INTERVAL * batch, length))
    while True:
        carry = run(carry)
        jax.block_until_ready(carry)
        yield shape


def device(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """50 steps planned and gathered in one program, as the device engine does between two updates."""
    yield from _device(folder, length, batch, planned=True)


def device_limit(folder: Path, length: int, batch: int) -> Iterator[np.ndarray]:
    """The same scan with rows chosen beforehand."""
    yield from _device(folder, length, batch, planned=False)


CONTENDERS = {
    function.__name__: function
    for function in (
        numpy_limit,
        ours,
        ours_file_per_domain,
        ours_thread,
        ours_records,
        grain_static,
        hf_map,
        hf_iterable,
        mosaicml,
        device,
        device_limit,
    )
}


def main() -> None:
    name, folder, length, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    batches = CONTENDERS[name](folder, length, batch)
    try:
        next(batches)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seconds, tokens = float(line), 0
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            tokens += next(batches).size
        print(json.dumps([tokens, time.perf_counter() - wall, time.process_time() - cpu]), flush=True)
    sys.stdout.flush()
    # Threads of some peers never end.
    import os

    os._exit(0)


if __name__ == "__main__":
    main()
