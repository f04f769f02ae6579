"""Published checkpoints in and out: Hugging Face folders and GGUF files as parameters of the decoder, and back."""

from pathlib import Path

from vtune_jax.models.checkpoints.checkpoint import Checkpoint, load_params
from vtune_jax.models.checkpoints.folder import export, open_folder
from vtune_jax.models.checkpoints.gguf_file import open_gguf

__all__ = ["Checkpoint", "export", "load_params", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Looks at a folder of Hugging Face's format, or at a GGUF file; its parameters stay on disk until `load_params`.

    Raises:
        UserError: it cannot be read, or is of a kind that is not known.
    """
    return open_gguf(path) if path.suffix.lower() == ".gguf" else open_folder(path)
