"""Velocitune in JAX: domain weights that follow learning velocity, beside every rival rule.

The rooms, lowest first: `core` (types and parts), `rules` (published methods), `fits` (target losses), `data`
(corpora, tokens, the mixture), `models`, `train`, `report`; then `config`, `stages` and `cli` on top.
Importing this package imports nothing else, so that `vtune-jax --help` answers at once.
"""

__version__ = "0.1.0"
