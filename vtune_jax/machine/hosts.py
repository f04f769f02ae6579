"""The processes of a run, one per host: which of them this one is, and which of them writes files."""

import jax


def shard() -> tuple[int, int]:
    """Index of this process and number of processes; (0, 1) where there is a single one."""
    return jax.process_index(), jax.process_count()


def leads() -> bool:
    """Whether this process writes what all compute alike: metrics and notes."""
    return jax.process_index() == 0
