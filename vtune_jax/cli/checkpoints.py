"""`vtune-jax import` and `export`: published checkpoints looked at, and runs' models handed on."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parsers(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verbs and their options."""
    take = verbs.add_parser(
        "import",
        help="a published checkpoint looked at: family, parameters, memory, its loss on a text",
        description="Looks at a Hugging Face folder or a GGUF file, as `pretrain.from_checkpoint` would read it.",
        epilog="example: vtune-jax import SmolLM2-135M --check --text README.md",
    )
    take.add_argument("checkpoint", type=Path, help="a folder with config.json and safetensors, or a .gguf file")
    take.add_argument(
        "--check", action="store_true", help="read it and say what it is, which is all that this verb does"
    )
    take.add_argument("--text", type=Path, help="a UTF-8 text to measure its loss on")
    take.add_argument("--sequence", type=int, default=1024, help="tokens that see each other (default: 1024)")
    take.add_argument("--json", action="store_true", help="print JSON")
    take.set_defaults(verb=_import)
    give = verbs.add_parser(
        "export",
        help="an arm's model as a folder that transformers loads",
        description="Writes a finished arm's model, or the base model, as a Hugging Face folder with its tokenizer.",
        epilog="example: vtune-jax export runs/quickstart velocitune exported",
    )
    give.add_argument("run", type=Path, help="the folder of a run, or of one configuration of it")
    give.add_argument("arm", help="label of the arm; `base` for the base model")
    give.add_argument("folder", type=Path, help="to be made")
    give.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the tensors (default: float32)")
    give.set_defaults(verb=_export)


def _import(options: argparse.Namespace) -> int:
    from vtune_jax.errors import UserError
    from vtune_jax.machine.mesh import assert_devices
    from vtune_jax.models.checkpoints import open_checkpoint

    assert_devices()
    if options.sequence < 1:
        raise UserError(f"--sequence must be at least 1, got {options.sequence}", "give a number of tokens")
    checkpoint = open_checkpoint(options.checkpoint)
    parameters = checkpoint.config.parameters(checkpoint.config.rows)
    said: dict[str, Any] = {
        "family": checkpoint.family,
        "parameters": parameters,
        "stored": checkpoint.stored,
        "layers": checkpoint.config.layers,
        "width": checkpoint.config.width,
        "rows": checkpoint.config.rows,
        "end_of_text": checkpoint.end_of_text,
        # Parameters in float32; and with gradients and AdamW's two moments.
        "bytes": 4 * parameters,
        "bytes_in_training": 16 * parameters,
        **_measured(checkpoint, options.text, options.sequence),
    }
    if options.json:
        print(json.dumps(said))
        return 0
    print(f"{checkpoint.path}: {said['family']}, {parameters:,} parameters, stored as {said['stored']}")
    print(f"  {said['layers']} layers of width {said['width']}, {said['rows']:,} rows of the embedding")
    print(f"  end of text {said['end_of_text'] or 'not said'}")
    print(f"  {said['bytes'] / 1e9:.2f} GB in float32, {said['bytes_in_training'] / 1e9:.2f} GB in training with AdamW")
    if "nats_per_token" in said:
        print(
            f"  {options.text}: {said['nats_per_token']:.4f} nats per token, {said['bits_per_byte']:.4f} bits per "
            f"byte, perplexity {said['perplexity']:.3f}, over {said['tokens']:,} tokens"
        )
    return 0


def _measured(checkpoint: Any, text: Path | None, sequence: int) -> dict[str, Any]:
    """Reads all parameters, so that a damaged checkpoint is found, and measures the text if there is one."""
    from vtune_jax.data.corpora.tokenizer import load_tokenizer, vocabulary_size
    from vtune_jax.errors import UserError
    from vtune_jax.evals.text_loss import text_loss
    from vtune_jax.models import build
    from vtune_jax.models.checkpoints import load_params

    params = load_params(checkpoint)
    if text is None:
        return {}
    if checkpoint.tokenizer is None:
        raise UserError(f"{checkpoint.path} has no tokenizer.json", "put the model's beside it")
    try:
        words = text.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {text} ({error.strerror})", "give a UTF-8 text") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{text} is not UTF-8 ({error.reason})", "give a UTF-8 text") from error
    tokenizer = load_tokenizer(checkpoint.tokenizer, checkpoint.end_of_text)
    if vocabulary_size(tokenizer) > checkpoint.config.rows:
        raise UserError(
            f"the tokenizer has {vocabulary_size(tokenizer):,} tokens, the embedding {checkpoint.config.rows:,} rows",
            "give the tokenizer that belongs to the checkpoint",
        )
    encoded = tokenizer.encode(words, add_special_tokens=False)
    if len(encoded.ids) < 2:
        raise UserError(f"{text} has {len(encoded.ids)} tokens", "give a text of two tokens at least")
    said = len(words[encoded.offsets[0][1] :].encode())
    model = build(checkpoint.config, checkpoint.config.rows)
    found = text_loss(model, params, encoded.ids, bytes_said=said, sequence=sequence)
    return {
        "nats_per_token": found.nats_per_token,
        "bits_per_byte": found.bits_per_byte,
        "perplexity": found.perplexity,
        "tokens": found.tokens,
    }


def _export(options: argparse.Namespace) -> int:
    from vtune_jax.machine.mesh import assert_devices
    from vtune_jax.stages.handed_on import hand_on

    assert_devices()
    family = hand_on(options.run, options.arm, options.folder, dtype=options.dtype or "float32")
    print(f"{options.folder}: a model of the family {family}, with its tokenizer")
    return 0
