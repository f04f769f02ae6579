"""Language models as pure functions of plain parameters."""

from vtune_jax.models.decoder import DecoderConfig, Model, build

__all__ = ["DecoderConfig", "Model", "build"]
