"""Language models as pure functions of plain parameters."""

from vtune_jax.models.decoder import DecoderConfig, build
from vtune_jax.models.model import Model

__all__ = ["DecoderConfig", "Model", "build"]
