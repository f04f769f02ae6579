"""The mixture in somebody else's training loop: a plain flax and optax loop that sets the weights by hand.

    python -m experiments.own_loop

Three corpora as bytes, a bigram model, weights that the loop itself chooses every 50 steps. Of `vtune_jax` only the
mixture is used.
"""

import jax
import numpy as np
import optax
from flax import nnx

from vtune_jax.data import MixtureIterator, TokenRows
from vtune_jax.data.corpora import embedded

DOMAINS = ("python", "c_headers", "markdown")
INTERVAL = 50


def main(steps: int = 200) -> np.ndarray:
    """Trains; returns the rows read of each domain."""
    text = {name: "\n".join(embedded.read(name)).encode() for name in DOMAINS}
    stores = [TokenRows(np.frombuffer(text[name], np.uint8), length=128, name=name) for name in DOMAINS]
    mixture = MixtureIterator.from_stores(stores, [0.6, 0.3, 0.1], batch=32, interval=INTERVAL, seed=0)

    model = nnx.Sequential(nnx.Embed(256, 64, rngs=nnx.Rngs(0)), nnx.Linear(64, 256, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, tokens):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:]).mean()

        loss, gradient = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradient)
        return loss

    read = np.zeros(len(DOMAINS), int)
    for step in range(steps):
        if step and step % INTERVAL == 0:
            weights = [0.2, 0.3, 0.5]  # chosen by any rule or by hand; they act from this very step on
            mixture.post(step // INTERVAL, weights)
        batch = next(mixture)
        loss = train_step(model, optimizer, jax.numpy.asarray(batch["tokens"], int))
        read += np.bincount(batch["domain"], minlength=len(DOMAINS))
        if (step + 1) % INTERVAL == 0:
            print(f"step {step + 1}: loss {loss:.3f}, rows read {dict(zip(DOMAINS, read.tolist(), strict=True))}")
    # Put `mixture.get_state()` into your checkpoint; after `set_state` the next batch is the one that would have come.
    return read


if __name__ == "__main__":
    main()
