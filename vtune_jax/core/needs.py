"""What a method may ask for, and how the trainer comes by it."""

NEEDS = {
    "heldout": "held-out losses per domain, at every update",
    "train": "losses of the training batches per domain since the last update, with counts",
    "weights": "the mixture that these batches were drawn from",
    "targets": "initial and target losses, by the targets stage",
    "sizes": "training tokens of each domain and the budget of the run",
    "reference": "losses on the same tokens of a model trained at the prior for `proxies.reference_length`",
    "alignment": "inner products of the domains' gradients on the last training batch",
    "heldout_alignment": "inner products of these gradients with those of the domains' held-out losses",
    "last_gradients": "the last gradient of a domain that is absent from the batch, kept in the train state",
    "probes": "intervals of training under mixtures of the method's own choice",
    "graph": "what domains do for each other, by one run of `proxies.length` on each alone",
    "proxies": "held-out losses of `proxies.mixtures` runs of `proxies.length` at random mixtures",
}
"""What a method may ask for in `Method.needs`, and how the trainer comes by it."""
