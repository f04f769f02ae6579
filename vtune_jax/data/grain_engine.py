"""The mixture read by the host: a grain iterator over row stores whose weights may move while it runs."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from vtune_jax.core.simplex import QUOTA_ONE
from vtune_jax.core.types import Cursor
from vtune_jax.data.plan import Plan, PlanSpec, advance, fingerprint, plan_steps
from vtune_jax.data.rows import TokenRows

State = dict[str, Any]


class MixtureIterator(grain.DatasetIterator):
    """Global batches of the plan, or one host's contiguous share of each.

    Weights have versions: version v is in force for steps `[v interval, (v + 1) interval)`. The iterator plans ahead
    within a version and never past it, so that new weights act from exactly their first step on (lag 0), whatever has
    been read in advance. Every host plans all rows and reads its own, so the global batch does not depend on how many
    hosts there are, and the state is the same on all of them.
    """

    def __init__(
        self,
        spec: PlanSpec,
        stores: Sequence[TokenRows],
        *,
        quota: np.ndarray,
        interval: int,
        shard: tuple[int, int] = (0, 1),
        chunk: int = 16,
    ) -> None:
        """Starts at step 0 under version 0.

        Args:
            spec: of the plan; its `rows` are the stores' lengths.
            stores: one per domain.
            quota: weights of version 0, fixed point.
            interval: steps per version.
            shard: index of this host and number of hosts.
            chunk: most steps planned at once; it changes the speed, not the rows.

        Raises:
            ValueError: lengths that do not agree, or a batch that the hosts cannot share evenly.
        """
        super().__init__()
        if tuple(map(len, stores)) != spec.rows:
            raise ValueError(f"stores must have {spec.rows} rows as in the spec, got {tuple(map(len, stores))}.")
        index, hosts = shard
        if spec.batch % hosts or not 0 <= index < hosts:
            raise ValueError(f"batch {spec.batch} must be a multiple of the hosts, got shard {shard}.")
        share = spec.batch // hosts
        self._spec, self._stores, self._interval, self._chunk = spec, tuple(stores), interval, chunk
        self._slice = slice(index * share, (index + 1) * share)
        domains = len(spec.rows)
        self.seek(0, Cursor(np.zeros(domains, np.uint32), np.zeros(domains, np.uint32)), quota)

    def seek(self, step: int, cursor: Cursor, quota: np.ndarray) -> None:
        """Goes to a position: the next batch is that of `step`, with these rows read and these weights in force."""
        self._step = step
        self._cursor = Cursor(*(np.array(column, np.uint32) for column in cursor))
        self._quotas = {step // self._interval: self._checked(quota)}
        self._forget_plan()

    def post(self, version: int, quota: np.ndarray) -> None:
        """Announces the weights of a version, at the latest before its first step is drawn.

        Raises:
            ValueError: the version is known with other weights, or is over.
        """
        quota = self._checked(quota)
        known = self._quotas.get(version)
        if known is not None and not np.array_equal(known, quota):
            raise ValueError(f"version {version} was posted with other weights: {known.tolist()}.")
        if version < self._step // self._interval:
            raise ValueError(f"version {version} is over: the next step is {self._step}.")
        self._quotas[version] = quota

    def __next__(self) -> dict[str, Any]:
        """The batch of the next step: `tokens` [rows, length + 1], `domain` [rows] and `step`.

        Raises:
            RuntimeError: the weights for this step have not been posted; posting them and asking again works.
        """
        self._assert_not_closed()
        if self._planned == self._plan_length:
            self._plan_ahead()
        domain = np.asarray(self._plan.domain[self._planned, self._slice])
        batch = {
            "tokens": self._read(domain, np.asarray(self._plan.row[self._planned, self._slice])),
            "domain": domain,
            "step": np.uint32(self._step),
        }
        self._cursor = advance(np, self._spec, self._cursor, self._plan.counts[self._planned])
        self._planned += 1
        self._step += 1
        return batch

    def get_state(self) -> State:
        """Step, cursor and the weights in force, the same on every host; and what it was made of.

        Its shape never changes, as grain asks. Weights posted ahead are not in it: the trainer, whose update made
        them, posts them again.
        """
        version = max(known for known in self._quotas if known <= self._step // self._interval)
        return {
            "step": self._step,
            "epoch": self._cursor.epoch.tolist(),
            "row": self._cursor.row.tolist(),
            "version": version,
            "quota": self._quotas[version].tolist(),
            "made_of": self._made_of(),
        }

    def set_state(self, state: State) -> None:
        """Returns to a state, of this iterator or of one on another number of hosts.

        Raises:
            ValueError: the state belongs to other data.
        """
        ours = self._made_of()
        differing = {name: (value, ours[name]) for name, value in state["made_of"].items() if value != ours[name]}
        if differing:
            said = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differing.items())
            raise ValueError(f"the state belongs to another mixture: {said}.")
        self._step = state["step"]
        self._cursor = Cursor(np.array(state["epoch"], np.uint32), np.array(state["row"], np.uint32))
        self._quotas = {state["version"]: self._checked(state["quota"])}
        self._forget_plan()

    def _made_of(self) -> State:
        return {**fingerprint(self._spec), "interval": self._interval, "length": self._stores[0].length}

    def _checked(self, quota: Sequence[int] | np.ndarray) -> np.ndarray:
        quota = np.array(quota, np.uint32)
        if quota.shape != (len(self._stores),) or quota.sum(dtype=np.uint64) != QUOTA_ONE:
            raise ValueError(f"quota must be {len(self._stores)} numbers with sum {QUOTA_ONE}, got {quota.tolist()}.")
        return quota

    def _forget_plan(self) -> None:
        self._planned = self._plan_length = 0

    def _plan_ahead(self) -> None:
        version = self._step // self._interval
        if version not in self._quotas:
            raise RuntimeError(
                f"the weights of version {version} (from step {version * self._interval} on) have not been posted; "
                f"call post({version}, quota) before asking for step {self._step}."
            )
        self._quotas = {known: quota for known, quota in self._quotas.items() if known >= version}
        steps = min(self._chunk, (version + 1) * self._interval - self._step)
        self._plan: Plan
        self._plan, _ = plan_steps(np, self._spec, self._step, steps, self._quotas[version], self._cursor)
        self._planned, self._plan_length = 0, steps

    def _read(self, domain: np.ndarray, row: np.ndarray) -> np.ndarray:
        length, dtype = self._stores[0].length, self._stores[0].tokens.dtype
        tokens = np.empty((len(domain), length + 1), dtype)
        for index in np.unique(domain):
            mine = domain == index
            tokens[mine] = self._stores[index].read(row[mine])
        return tokens
