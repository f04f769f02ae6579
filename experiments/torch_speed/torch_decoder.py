"""The same decoder in plain PyTorch: the rival of `measure.py`, and the truth of `tests/train/test_torch_step.py`.

RMSNorm by `F.rms_norm`, attention by `F.scaled_dot_product_attention`, `F.cross_entropy`, AdamW in one fused kernel.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Llama's layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        inner, kv = config.heads * config.of_head, config.key_value_heads * config.of_head
        self.attention_norm = nn.Parameter(torch.ones(config.width))
        self.query, self.key, self.value, self.out = (
            nn.Linear(inputs, outputs, bias=False)
            for inputs, outputs in (
                (config.width, inner),
                (config.width, kv),
                (config.width, kv),
                (inner, config.width),
            )
        )
        self.mlp_norm = nn.Parameter(torch.ones(config.width))
        self.gate, self.up, self.down = (
            nn.Linear(inputs, outputs, bias=False)
            for inputs, outputs in ((config.width, config.hidden),) * 2 + ((config.hidden, config.width),)
        )

    def forward(self, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        config, (rows, places, _) = self.config, hidden.shape
        x = F.rms_norm(hidden, (config.width,), self.attention_norm, config.norm_epsilon)
        query, key, value = (
            project(x).view(rows, places, -1, config.of_head).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        query, key = (self.turned(heads, cosine, sine) for heads in (query, key))
        grouped = config.heads != config.key_value_heads
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(rows, places, -1))
        x = F.rms_norm(hidden, (config.width,), self.mlp_norm, config.norm_epsilon)
        return hidden + self.down(F.silu(self.gate(x)) * self.up(x))

    @staticmethod
    def turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Decoder(nn.Module):
    """Tokens to the mean loss of what follows them."""

    def __init__(self, config: Any, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        config, places = self.config, tokens.shape[1] - 1
        half = config.of_head // 2
        angle = torch.arange(places)[:, None] * config.rope_theta ** (-torch.arange(half) / half)
        cosine, sine = angle.cos(), angle.sin()
        hidden = self.embedding(tokens[:, :-1])
        for block in self.blocks:
            hidden = block(hidden, cosine, sine)
        hidden = F.rms_norm(hidden, (config.width,), self.norm, config.norm_epsilon)
        logits = hidden @ self.embedding.weight.T
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def named(params: Any) -> dict[str, np.ndarray]:
    """Our parameters under the names and in the layout of `Decoder`."""
    flat = {"embedding.weight": params["embedding"], "norm": params["norm"]["scale"]}
    blocks = params["blocks"]
    for layer in range(len(blocks["attention_norm"]["scale"])):
        here = f"blocks.{layer}"
        for name in ("attention_norm", "mlp_norm"):
            flat[f"{here}.{name}"] = blocks[name]["scale"][layer]
        for room, names in (("attention", ("query", "key", "value", "out")), ("mlp", ("gate", "up", "down"))):
            for name in names:
                flat[f"{here}.{name}.weight"] = blocks[room][name]["matrix"][layer].T
    return {name: np.array(value) for name, value in flat.items()}


def decoder(config: Any, vocabulary: int, params: Any) -> Decoder:
    """A decoder with our parameters."""
    model = Decoder(config, vocabulary)
    model.load_state_dict({name: torch.tensor(value) for name, value in named(params).items()})
    return model


def optimiser(model: Decoder, numbers: Any) -> torch.optim.AdamW:
    """AdamW as an `OptimizerConfig` says it; matrices alone decay. The rate is that of each step, see `step`."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": numbers.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(numbers.beta1, numbers.beta2),
        eps=1e-8,
        fused=True,
    )


def step(model: Any, descent: torch.optim.AdamW, tokens: torch.Tensor, rate: float, clip: float) -> tuple[float, float]:
    """One step; the loss and the norm of its gradient."""
    for group in descent.param_groups:
        group["lr"] = rate
    descent.zero_grad(set_to_none=True)
    loss = model(tokens)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    descent.step()
    return loss.item(), float(norm)
