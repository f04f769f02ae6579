"""Tiny random checkpoints of every family as `transformers` writes them, with its logits and gradients.

    pip install -e '.[parity]' && python -m experiments.parity.record

writes `tests/fixtures/checkpoints/FAMILY/`: config.json, model.safetensors, `tokens`, `logits`, and gradients of the
mean loss, in `recorded.npz`. `tests/models/test_parity.py` compares with the records, and where torch and transformers
are installed with what they say then.
"""

from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[2] / "tests" / "fixtures" / "checkpoints"
SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**GROUPED, "rms_norm_eps": 1e-3, "rope_theta": 5000.0, "tie_word_embeddings": True}),
    "llama-3.1": (
        "LlamaConfig",
        {
            **GROUPED,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama-biases": ("LlamaConfig", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gpt-neox": ("GPTNeoXConfig", {**SHAPE, "rotary_pct": 0.5}),
    "gpt-neox-in-turn": (
        "GPTNeoXConfig",
        {**SHAPE, "rotary_pct": 0.5, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
}
"""Names of classes in transformers, and what their configs say: no two with the same epsilon, base and window."""
TOKENS = np.random.default_rng(0).integers(0, 48, (2, 33))


def make(name: str, folder: Path) -> None:
    """Writes a checkpoint with random parameters."""
    import torch
    import transformers

    kind, fields = FAMILIES[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def measured(folder: Path) -> dict[str, np.ndarray]:
    """Logits of a folder's model, and gradients of its mean loss by the names of its tensors."""
    import safetensors
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = torch.tensor(TOKENS)
    logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    of_parameters = dict(model.named_parameters())
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        # Release 5 calls GPT-NeoX's head otherwise in memory than on disk; one name is all that can differ.
        (unknown,) = set(file.keys()) - set(of_parameters) or {""}
    gradients = {
        f"gradient {unknown if unknown and name == 'lm_head.weight' else name}": value.grad.numpy()
        for name, value in of_parameters.items()
    }
    return {"tokens": TOKENS, "logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


def main() -> None:
    for name in FAMILIES:
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        make(name, folder)
        np.savez_compressed(folder / "recorded.npz", **measured(folder))
        print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
