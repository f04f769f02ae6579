"""The mixture read by the host: a grain iterator over row stores whose weights may move while it runs."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self, get_args

import grain
import numpy as np

from vtune_jax.core.checks import MOST, assert_whole, given
from vtune_jax.core.types import Cursor
from vtune_jax.data.mixture.gather import Pool, RowReader, Workers
from vtune_jax.data.mixture.inputs import (
    Shares,
    State,
    as_cursor,
    as_quota,
    assert_state,
    assert_within_epoch,
    changes,
    stores_of,
)
from vtune_jax.data.mixture.limits import End, why_ended
from vtune_jax.data.mixture.order import OrderCache
from vtune_jax.data.mixture.plan import Plan, blocks_ahead, cursor_at, plan_steps
from vtune_jax.data.mixture.spec import MOST_STEPS, PlanSpec, fingerprint, start_cursor
from vtune_jax.data.tokens.rows import RowStore, as_stores

PLAN_ROWS = 1 << 13
"""Most rows planned at once."""
READ_BYTES = 1 << 18
"""About how much is read at once: little enough to stay in the processor's cache while rows are put in order."""


class _Chunk(NamedTuple):
    """Consecutive steps of a plan that are read together."""

    plan: Plan
    first: int  # step of the plan
    steps: int
    rows: Any  # a future of the rows of all these steps


class MixtureIterator(grain.DatasetIterator):
    """Global batches of the plan, or one host's contiguous share of each.

    Weights have versions: version v is in force for steps `[v interval + lag, (v + 1) interval + lag)`, version 0 also
    before. The iterator plans and reads ahead only within versions that have been posted, so new weights act from
    exactly their first step on, however much has been read in advance and whatever threads do. Every host plans all
    rows and reads its own, so the global batch does not depend on the number of hosts, and the state is the same on all
    of them.

    With lag 0, the default, the first step under new weights waits for its rows: about a millisecond from memory maps.
    From storage that answers after 10 ms the wait is a third of a second if rows are read one by one, and again about a
    millisecond in blocks (`rows.BlockRows`): the next blocks are the same whatever the weights become, and are read
    ahead. A lag of as many steps as are read ahead hides the rest; the price is that new weights act that many steps
    later. `python -m experiments.mixture_speed.waits` measured these.
    """

    # Grain closes even an iterator whose construction failed, or never began because of an unknown argument.
    _closed = True
    _pool: Pool | None = None
    _block_pool: ThreadPoolExecutor | None = None

    def __init__(
        self,
        spec: PlanSpec,
        stores: Sequence[RowStore],
        *,
        quota: Shares,
        interval: int,
        lag: int = 0,
        shard: tuple[int, int] = (0, 1),
        chunk: int = 64,
        workers: int = 0,
        worker_kind: Workers = "threads",
    ) -> None:
        """Starts at step 0 under version 0.

        Args:
            spec: of the plan; its `rows` are the stores' lengths and its `blocks` theirs.
            stores: one per domain.
            quota: weights of version 0, fixed point (uint32, sum 2**24) or float.
            interval: steps per version.
            lag: steps between an update and the step from which its weights are in force, in [0, interval).
            shard: index of this host and number of hosts.
            chunk: most steps planned and read at once; it changes the speed, not the rows.
            workers: threads or processes that read ahead; 0: the calling thread reads each batch, enough for memory
                maps.
            worker_kind: whether workers are threads or processes.

        Raises:
            ValueError: stores whose lengths or blocks are not the spec's or whose rows have different lengths, weights
                that are no shares, a batch that is no multiple of the number of hosts, a number out of its range.
            TypeError: what are no row stores, no `PlanSpec`, no whole numbers.
        """
        super().__init__()
        self._place: tuple[Cursor, int] | None = None
        self._current: _Chunk | None = None
        self._plan: Plan | None = None
        stores = stores_of(spec, stores)
        if not (isinstance(shard, tuple) and len(shard) == 2):
            raise TypeError(f"shard must be the index of this host and the number of hosts, got {given(shard)}.")
        index, hosts = shard
        assert_whole(1, MOST, hosts=hosts, interval=interval, chunk=chunk)
        assert_whole(0, MOST, shard=index, lag=lag, workers=workers)
        if spec.batch % hosts or not 0 <= index < hosts:
            raise ValueError(f"batch {spec.batch} must be a multiple of the hosts, got shard {shard}.")
        if not 0 <= lag < interval:
            raise ValueError(f"lag must lie in [0, interval = {interval}), got {lag}.")
        if worker_kind not in get_args(Workers):
            raise ValueError(f"worker_kind must be threads or processes, got {given(worker_kind)}.")
        share = spec.batch // hosts
        self._spec, self._stores, self._interval, self._lag = spec, stores, int(interval), int(lag)
        self._chunk_steps = max(1, min(chunk, PLAN_ROWS // spec.batch))
        # Tokens are taken to have two bytes; with four, twice as much is read at once, which changes the speed only.
        self._read_steps = max(1, min(self._chunk_steps, READ_BYTES // (share * (stores[0].length + 1) * 2)))
        self._orders = OrderCache(spec)
        self._slice = slice(index * share, (index + 1) * share)
        self._pool, self._workers = Pool(RowReader(self._stores), workers, worker_kind), workers
        in_blocks = [number for number, block in enumerate(spec.block_by_domain) if block > 1]
        self._in_blocks = in_blocks if worker_kind == "threads" else []
        if self._in_blocks:
            self._block_pool = ThreadPoolExecutor(min(32, 2 * len(in_blocks)), thread_name_prefix="blocks")
        self._chunks: deque[_Chunk] = deque()
        self.seek(0, start_cursor(len(spec.rows)), quota)

    @classmethod
    def from_stores(
        cls,
        stores: Sequence[RowStore],
        weights: Shares,
        *,
        batch: int,
        interval: int,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """The mixture of some stores, with the spec that fits them.

        Args:
            stores: one per domain.
            weights: of version 0, shares that sum to 1.
            batch: rows per step over all hosts.
            interval: steps per version of the weights.
            seed: of the plan: of the order of rows and of the allocation.
            options: `allocation`, `limits` and `stop` of `PlanSpec`, and the keyword arguments of this class.

        Raises:
            ValueError, TypeError: what `PlanSpec` and this class refuse.
        """
        of_plan = {name: options.pop(name) for name in ("allocation", "limits", "stop") if name in options}
        stores = as_stores(stores)
        rows, blocks = tuple(map(len, stores)), tuple(store.block for store in stores)
        spec = PlanSpec(rows=rows, batch=batch, seed=seed, blocks=blocks if max(blocks) > 1 else (), **of_plan)
        return cls(spec, stores, quota=weights, interval=interval, **options)

    def seek(self, step: int, cursor: Cursor, quota: Shares, *, pending: Shares | None = None) -> None:
        """Moves to a position: the next batch is that of `step`.

        Args:
            step: index of the next step.
            cursor: rows read before it.
            quota: weights in force, fixed point or float.
            pending: weights of the newest update, if because of the lag they are not in force yet.

        Raises:
            ValueError: a step out of range, a cursor of other domains, weights that are no shares.
            TypeError: what is no step, no cursor, no numbers.
        """
        assert_whole(0, MOST_STEPS, step=step)
        version, newest, domains = self._version(step), step // self._interval, len(self._stores)
        start, quotas = as_cursor(cursor, self._spec), {version: as_quota(quota, domains)}
        assert_within_epoch(start, self._spec)
        if pending is not None and newest > version:
            quotas[newest] = as_quota(pending, domains)
        self._step, self._start, self._quotas = int(step), start, quotas
        self._forget_plan()

    def post(self, version: int, weights: Shares) -> None:
        """Gives the weights of a version; needed before the first step of that version is drawn.

        Args:
            version: its number; version v comes into force at step `v interval + lag`.
            weights: fixed point (uint32, sum 2**24) or float.

        Raises:
            ValueError: the version was posted with other weights, or all its steps have been drawn; weights that are
                no shares.
            TypeError: what is no version, no numbers.
        """
        assert_whole(version=version)
        quota = as_quota(weights, len(self._stores))
        known = self._quotas.get(version)
        if known is not None and not np.array_equal(known, quota):
            raise ValueError(f"version {version} was posted with other weights: {known.tolist()}.")
        if version < self._version(self._step):
            raise ValueError(f"version {version} is over: the next step is {self._step}.")
        self._quotas[version] = quota
        if self._workers:
            self._read_ahead()

    def __next__(self) -> dict[str, Any]:
        """The batch of the next step: the stores' arrays [rows, ...], `domain` [rows] and `step`.

        Raises:
            RuntimeError: the weights for this step have not been posted; posting them and asking again works.
            StopIteration: a limit ends the mixture here; see `ended`.
            UserError: the tokens of a domain are lost or damaged; asking again tries again.
        """
        self._assert_not_closed()
        if self._current is None or self._used == self._current.steps:
            self._next_chunk()
        chunk, place = self._current, self._used
        assert chunk is not None
        step = chunk.first + place
        share = self._slice.stop - self._slice.start
        here = slice(place * share, (place + 1) * share)
        batch: dict[str, Any] = {name: rows[here] for name, rows in self._rows.items()}
        batch["domain"] = np.asarray(chunk.plan.domain[step, self._slice])
        batch["step"] = np.uint32(self._step)
        self._place = (chunk.plan.after, step)
        self._used += 1
        self._step += 1
        return batch

    @property
    def cursor(self) -> Cursor:
        """What has been read by the batches returned so far."""
        return cursor_at(*self._place) if self._place else self._start

    def ended(self) -> End:
        """Why the next step cannot be made, after `StopIteration`.

        Raises:
            RuntimeError: it has not ended: nothing limits it, or the weights of the next step are not there.
        """
        quota = self._quotas.get(self._version(self._step))
        if quota is None or not self._spec.limited:
            raise RuntimeError(f"the mixture has not ended at step {self._step}; call this after StopIteration.")
        return why_ended(self._spec, quota, self.cursor, self._stores)

    def start_prefetch(self) -> None:
        """Starts reading ahead if there are workers; grain calls it."""
        if self._workers:
            self._read_ahead()

    def close(self) -> None:
        """Stops reading ahead and ends the workers."""
        super().close()
        if self._pool is not None:
            self._pool.close()
        if self._block_pool is not None:
            self._block_pool.shutdown(wait=False, cancel_futures=True)

    def get_state(self) -> State:
        """Step, cursor, the weights in force, the newest ones posted, and what the rows depend on.

        It is the same on every host, and its shape never changes, as grain asks.
        """
        version = self._version(self._step)
        version = version if version in self._quotas else max(known for known in self._quotas if known < version)
        newest = max(self._quotas)
        return {
            "step": self._step,
            **{name: column.tolist() for name, column in self.cursor._asdict().items()},
            "version": version,
            "quota": self._quotas[version].tolist(),
            "next_version": newest,
            "next_quota": self._quotas[newest].tolist(),
            "made_of": self._made_of(),
        }

    def set_state(self, state: State, *, allow_data_change: bool = False) -> None:
        """Returns to a state of this iterator, or of one on another number of hosts.

        Args:
            state: from `get_state`.
            allow_data_change: goes on even if the data are not those of the state; a domain that now has fewer rows
                than were read in its current epoch begins the next epoch.

        Raises:
            ValueError: the state belongs to other data and `allow_data_change` is False, or it is damaged. Nothing has
                changed then.
            TypeError: it is no state.
        """
        assert_state(state, self.get_state())
        differences = changes(state["made_of"], self._made_of())
        if differences and not allow_data_change:
            raise ValueError(f"the state belongs to another mixture: {'; '.join(differences)}.")
        start = as_cursor(Cursor(*(state[name] for name in Cursor._fields)), self._spec)
        start = adapted(self._spec.rows, start) if differences else start
        assert_within_epoch(start, self._spec)
        version, newest = int(state["version"]), int(state["next_version"])
        # Of other data the interval may be another one.
        if not differences and version > self._version(state["step"]):
            raise ValueError(f"version must be in force at step {state['step']}, got {version}.")
        domains = len(self._stores)
        quotas = {newest: as_quota(state["next_quota"], domains)} | {version: as_quota(state["quota"], domains)}
        self._step, self._start, self._quotas = int(state["step"]), start, dict(sorted(quotas.items()))
        self._forget_plan()

    def _made_of(self) -> State:
        extent = {"interval": self._interval, "lag": self._lag, "length": self._stores[0].length}
        return {**fingerprint(self._spec), **extent}

    def _version(self, step: int) -> int:
        return max(0, step - self._lag) // self._interval

    def _forget_plan(self) -> None:
        """Drops what was planned and read ahead; `_step` and `_start` are already those of the next batch."""
        self._place = None
        for chunk in self._chunks:
            chunk.rows.cancel()
        self._chunks.clear()
        self._current, self._plan = None, None
        self._expected: dict[int, tuple[int, int]] = {}
        self._used = 0
        self._planned, self._plan_steps = 0, 0
        self._planned_step, self._planned_cursor = self._step, self._start

    def _next_chunk(self) -> None:
        self._current, self._used = None, 0
        version = self._version(self._step)
        if version in self._quotas:
            # Earlier versions are over.
            self._quotas = {known: quota for known, quota in self._quotas.items() if known >= version}
        if not self._chunks and not self._plan_chunk():
            if version not in self._quotas:
                raise RuntimeError(
                    f"the weights of version {version} (from step {version * self._interval + self._lag} on) have not "
                    f"been posted; call post({version}, weights) before asking for step {self._step}."
                )
            raise StopIteration
        chunk = self._chunks.popleft()
        if self._workers:
            self._read_ahead()
        try:
            self._rows = chunk.rows.result()
        except BaseException:
            self._start = self.cursor
            self._forget_plan()
            raise
        self._current = chunk

    def _read_ahead(self) -> None:
        while len(self._chunks) < self._workers and self._plan_chunk():
            pass

    def _plan_chunk(self) -> bool:
        """Starts reading the next planned steps, planning more if needed; False where nothing can be planned yet."""
        if self._planned == self._plan_steps and not self._plan_version():
            return False
        plan, first = self._plan, self._planned
        assert plan is not None and self._pool is not None  # noqa: PT018
        steps = min(self._read_steps, self._plan_steps - first)
        domain, row = (
            np.asarray(part[first : first + steps, self._slice]).reshape(-1) for part in (plan.domain, plan.row)
        )
        if self._in_blocks:
            self._expect_blocks(cursor_at(plan.after, first))
        self._chunks.append(_Chunk(plan, first, steps, self._pool.submit(domain, row)))
        self._planned += steps
        return True

    def _plan_version(self) -> bool:
        """Plans the next steps of one version; False if its weights were not posted or no step can be made."""
        step, version = self._planned_step, self._version(self._planned_step)
        if version not in self._quotas:
            return False
        steps = min(self._chunk_steps, (version + 1) * self._interval + self._lag - step)
        plan, after = plan_steps(
            np, self._spec, step, steps, self._quotas[version], self._planned_cursor, orders=self._orders
        )
        if plan.short.any():
            steps = int(plan.short.argmax())
            if not steps:
                return False
            after = cursor_at(plan.after, steps - 1)
        self._plan, self._planned, self._plan_steps = plan, 0, steps
        self._planned_step, self._planned_cursor = step + steps, after
        return True

    def _expect_blocks(self, cursor: Cursor) -> None:
        """Starts reading each domain's current block and the next three, which do not depend on weights."""
        for index in self._in_blocks:
            here = (int(cursor.epoch[index]), int(cursor.row[index]) // self._spec.blocks[index])
            if self._expected.get(index) != here:
                self._expected[index] = here
                ahead = blocks_ahead(self._spec, index, here[0], int(cursor.row[index]), 4)
                self._stores[index].expect(ahead, self._block_pool)  # type: ignore[attr-defined]


def adapted(rows: Sequence[int] | np.ndarray, cursor: Cursor) -> Cursor:
    """A cursor of other data, on domains of these lengths: where the place lies past the end, the next epoch begins."""
    rows = np.asarray(rows, np.uint32)
    over = np.asarray(cursor.row) >= rows
    epoch = np.asarray(cursor.epoch) + over.astype(np.uint32)
    return cursor._replace(epoch=epoch, row=np.where(over, np.uint32(0), np.asarray(cursor.row)))
