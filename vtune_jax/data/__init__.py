"""Corpora, tokens and the mixture: which rows a step trains on, and how they reach it.

What a training loop of one's own needs stands here, loaded when it is first used:

>>> from vtune_jax.data import MixtureIterator, TokenRows

[mixture/README.md](mixture/README.md) explains it.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "BlockRows": "vtune_jax.data.tokens.rows",
    "CorpusConfig": "vtune_jax.data.corpora.config",
    "DomainConfig": "vtune_jax.data.corpora.config",
    "MappedTokens": "vtune_jax.data.tokens.mapped",
    "MixtureIterator": "vtune_jax.data.mixture.on_host",
    "PackedRows": "vtune_jax.data.tokens.packing",
    "PlanSpec": "vtune_jax.data.mixture.spec",
    "PreparedCorpus": "vtune_jax.data.tokens.prepared",
    "RecordTokens": "vtune_jax.data.tokens.array_record",
    "RowStore": "vtune_jax.data.tokens.rows",
    "TokenRows": "vtune_jax.data.tokens.rows",
    "TokenizerConfig": "vtune_jax.data.corpora.tokenizer",
    "build_table": "vtune_jax.data.mixture.on_device",
    "draw": "vtune_jax.data.mixture.on_device",
    "plan_steps": "vtune_jax.data.mixture.plan",
    "prepare": "vtune_jax.data.corpora.prepare",
    "start_cursor": "vtune_jax.data.mixture.spec",
}
"""Public names and the modules that define them. Nothing is imported before it is asked for, as worker processes import
this package too and need neither jax nor grain."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
