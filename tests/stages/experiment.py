"""A whole experiment on made text, small enough for a test."""

import json

import numpy as np

CONFIG = """
seed = 1
[corpus]
heldout_fraction = 0.2
base = {{ name = "base", source = "{folder}/base.jsonl" }}
[[corpus.domains]]
name = "letters"
source = "{folder}/letters.jsonl"
[[corpus.domains]]
name = "digits"
source = "{folder}/digits.jsonl"
[[corpus.domains]]
name = "mixed"
source = "{folder}/mixed.jsonl"
[corpus.tokenizer]
vocab_size = 300
[data]
sequence = 16
batch = 4
heldout_rows = 6
[model]
layers = 1
width = 16
heads = 2
key_value_heads = 1
hidden = 24
[mixture]
interval = 5
[pretrain]
steps = 20
[targets]
budget = 2.0
evaluations = 8
[train]
steps = 30
[train.optimizer]
peak_learning_rate = 0.01
[loop]
log_every = 5
checkpoint_every = 10
[[arms]]
name = "velocitune"
floor = 0.05
[[arms]]
name = "static"
"""
ALPHABETS = {"base": "abcdefghij", "letters": "abc", "digits": "0123456789", "mixed": "abc0123"}


def write_experiment(folder, name="small"):
    """Corpora and a config; returns the config's path."""
    rng = np.random.default_rng(0)
    for corpus, alphabet in ALPHABETS.items():
        texts = [" ".join("".join(rng.choice(list(alphabet), 4)) for _ in range(30)) for _ in range(60)]
        (folder / f"{corpus}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    path = folder / f"{name}.toml"
    path.write_text(CONFIG.format(folder=folder))
    return path
