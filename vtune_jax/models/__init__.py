"""Language models as pure functions of plain parameters."""

from vtune_jax.models.decoder_config import DecoderConfig
from vtune_jax.models.model import Batch, Family, Model, ModelConfig
from vtune_jax.models.registry import build, model_configs

__all__ = ["Batch", "DecoderConfig", "Family", "Model", "ModelConfig", "build", "model_configs"]
