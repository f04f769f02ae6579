"""The methods in one table: name, config, source, and where they leave their source."""

from typing import NamedTuple

from vtune_jax.rules.dbl import DynamicBatchLoading
from vtune_jax.rules.group_dro import GroupDro
from vtune_jax.rules.odm import Odm
from vtune_jax.rules.skillit import SkillIt
from vtune_jax.rules.static import Static
from vtune_jax.rules.velocitune import Velocitune


class Entry(NamedTuple):
    """One published method."""

    name: str
    config: type  # a dataclass with `build() -> Method`
    source: str
    departures: tuple[str, ...]


NEEDS = {
    "heldout": "held-out losses per domain, at every update",
    "train": "losses of the training batches per domain since the last update, with counts",
    "weights": "the mixture that these batches were drawn from",
    "targets": "initial and target losses, by the targets stage",
    "sizes": "training tokens of each domain and the budget of the run",
    "reference": "losses of a reference model on the same tokens: one trained at the prior for `proxies.reference_length`",
    "alignment": "inner products of the domains' gradients on the last training batch",
    "heldout_alignment": "inner products of these gradients with those of the domains' held-out losses",
    "last_gradients": "the last gradient of a domain that is absent from the batch, kept in the train state",
    "probes": "intervals of training under mixtures of the method's own choice",
    "graph": "what domains do for each other, by one run of `proxies.length` on each alone",
    "proxies": "held-out losses of `proxies.mixtures` runs of `proxies.length` at random mixtures",
}
"""What a method may ask for in `Method.needs`, and how the trainer comes by it."""

METHODS: tuple[Entry, ...] = (
    Entry("static", Static, "control", ()),
    Entry(
        "velocitune",
        Velocitune,
        "Luo et al. 2025, arXiv:2411.14318",
        (
            "step size, smoothing and floor are options; their defaults (1, 0, 0) are the paper's form as far as known",
            "a domain whose target is not below its initial loss gets a remaining fraction of 0",
            "a domain without evidence keeps its weight",
        ),
    ),
    Entry(
        "dbl",
        DynamicBatchLoading,
        "Xia et al. 2023, arXiv:2310.06694; princeton-nlp/LLM-Shearing",
        (
            "as in the code, gaps below zero count and 1e-4 is mixed in as uniform; the paper clips (`clip`)",
            "step size and smoothing are options; literals in the code",
            "a domain without evidence keeps its weight",
        ),
    ),
    Entry(
        "group_dro",
        GroupDro,
        "Sagawa et al. 2020, arXiv:1911.08731; kohpangwei/group_DRO",
        (
            "weights choose what is sampled; in the original they weigh the loss of a batch sampled otherwise",
            "with no evidence at all nothing moves; as in the code, one absent domain counts as having loss 0",
            "evidence is the mean loss since the last update, at every step in the original",
        ),
    ),
    Entry(
        "odm",
        Odm,
        "Albalak et al. 2023, arXiv:2312.02406; alon-albalak/online-data-mixing",
        (
            "the default is the code's Exp3, rewards scaled by 0.1; `form` gives its smoothed means or the paper's",
            "evidence is the mean loss since the last update, at every step in the original",
            "with no evidence at all nothing moves, nor does the exploration rate",
        ),
    ),
    Entry(
        "skillit",
        SkillIt,
        "Chen et al. 2023, arXiv:2307.14430; HazyResearch/skill-it",
        (
            "the first weights are the prior; in the original they come from the graph alone",
            "one evaluation per update, so that `fade` counts evaluations; in the original it counts updates",
            "a domain missing from an evaluation is taken at its mean over the window",
            "the loader's rule that off-diagonal ones become 0.5 is left to whoever writes the graph",
        ),
    ),
)
