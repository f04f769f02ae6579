"""The methods in one table: name, config, factory, source, and where they leave their source."""

from collections.abc import Callable
from typing import NamedTuple

from vtune_jax.core.types import Method
from vtune_jax.rules.ado import Ado, ado
from vtune_jax.rules.aioli import Aioli, aioli
from vtune_jax.rules.config import Arm
from vtune_jax.rules.dbl import DynamicBatchLoading, dynamic_batch_loading
from vtune_jax.rules.doge import DoGE, doge
from vtune_jax.rules.doremi import DoReMi, doremi
from vtune_jax.rules.grape import Grape, grape
from vtune_jax.rules.group_dro import GroupDro, group_dro
from vtune_jax.rules.odm import Odm, odm
from vtune_jax.rules.offline import MixingLaws, Olmix, RegMix
from vtune_jax.rules.skillit import SkillIt, skillit
from vtune_jax.rules.static import Static, static
from vtune_jax.rules.velocitune import Velocitune, velocitune


class Entry(NamedTuple):
    """One published method."""

    name: str
    config: type[Arm]  # a dataclass with `build() -> Method`
    factory: Callable[..., Method]  # the rule alone, for somebody's own loop
    source: str
    departures: tuple[str, ...]


METHODS: tuple[Entry, ...] = (
    Entry(
        "static",
        Static,
        static,
        "control; UniMax: Chung et al. 2023, arXiv:2304.09151",
        (
            "UniMax counts tokens, characters in the paper; what cannot be spent is said instead of scaled up silently",
            "stratified: groups share evenly, and within a group the power law of sizes holds",
        ),
    ),
    Entry(
        "velocitune",
        Velocitune,
        velocitune,
        "Luo et al. 2025, arXiv:2411.14318",
        (
            "step size, smoothing and floor are options; their defaults (1, 0, 0) are the paper's form as far as known",
            "a domain whose target is not below its initial loss gets a remaining fraction of 0",
            "a domain without evidence keeps its weight",
            "`from_prior` is the other form that descriptions of the method allow: `prior exp(-eta V)`, normalised",
        ),
    ),
    Entry(
        "dbl",
        DynamicBatchLoading,
        dynamic_batch_loading,
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
        group_dro,
        "Sagawa et al. 2020, arXiv:1911.08731; kohpangwei/group_DRO",
        (
            'weights choose what is sampled by default; the original weighs the loss: `acts_on = "loss"`',
            "with no evidence at all nothing moves; as in the code, one absent domain counts as having loss 0",
            "evidence is the mean loss since the last update, at every step in the original",
        ),
    ),
    Entry(
        "odm",
        Odm,
        odm,
        "Albalak et al. 2023, arXiv:2312.02406; alon-albalak/online-data-mixing",
        (
            "the default is the code's Exp3, rewards scaled by 0.1; `form` gives its smoothed means or the paper's",
            "evidence is the mean loss since the last update, at every step in the original",
            "with no evidence at all nothing moves, nor does the exploration rate",
        ),
    ),
    Entry(
        "ado",
        Ado,
        ado,
        "Jiang et al. 2024, arXiv:2410.11820; yidingjiang/ado, eth-easl/mixtera",
        (
            "as in the code: credit follows the batches' counts (the policy in the paper), and a floor of 0.05 stands "
            "before the slope only",
            "the fit's penalties act as bounds, which they are steep enough for; 48 damped Gauss-Newton starts for 512 "
            "of L-BFGS, to the same minimum",
            "no fit with fewer than four points, where the code fits a single one",
            "counts are tokens over `tokens_per_count`; one observation per update, at every step in the original",
            "with no evidence time stands still",
        ),
    ),
    Entry(
        "skillit",
        SkillIt,
        skillit,
        "Chen et al. 2023, arXiv:2307.14430; HazyResearch/skill-it",
        (
            "the first weights are the prior; in the original they come from the graph alone",
            "one evaluation per update, so that `fade` counts evaluations; in the original it counts updates",
            "a domain missing from an evaluation is taken at its mean over the window",
            "the loader's rule that off-diagonal ones become 0.5 is left to whoever writes the graph",
        ),
    ),
    Entry(
        "doremi",
        DoReMi,
        doremi,
        "Xie et al. 2023, arXiv:2305.10429; sangmichaelxie/doremi",
        (
            "four versions (`form`): the official code's and those of levanter, Aioli and DoGE, which are other rules",
            "evidence is pooled over the tokens since the last update; in the original the weights move at every step",
            "a domain not seen yet scores `first_score`, 0; in the official code ln |V|, in Aioli's and DoGE's 1e-6",
            "an empty or non-finite sum counts as absent; in the official code it makes every weight NaN",
            "the proxy (`proxy_share`) has the real model's size, and starts from the base model as the reference does",
            "its mean weights leave out those it started from, as in the paper; the official code counts them in",
        ),
    ),
    Entry(
        "doge",
        DoGE,
        doge,
        "Fan et al. 2023, arXiv:2310.15393; Olivia-fsm/DoGE",
        (
            "gradients are those of the last batch before an update, at the parameters after it",
            'weights choose what is sampled by default; the original weighs gradients: `acts_on = "loss"`',
            "`targets` are domains of the corpus; one that is not trained on has weight 0 in the prior "
            'and `towards = "heldout"`',
            'Aioli\'s version is `towards = "heldout"`, `keep_absent = false`; its one mixed batch is here the sum of '
            "all domains' held-out gradients, each clipped",
        ),
    ),
    Entry(
        "aioli",
        Aioli,
        aioli,
        "Chen et al. 2024, arXiv:2411.05735; HazyResearch/aioli",
        (
            "probes last one interval each, and so does every evaluation; `hold` says how long the weights then stay",
            "the mixtures that were really drawn from are inverted, so that floors and ceilings do not falsify A",
            "a round in which no loss moves leaves the weights alone; NaN in the code",
            "the order of probes is drawn by a key of the round's number, not by a global generator",
        ),
    ),
    Entry(
        "grape",
        Grape,
        grape,
        "in the style of Fan et al. 2025, arXiv:2505.20380",
        (
            "from the abstract and public summaries; its constants, clipping and intervals could not be checked",
            "the tasks are the domains' held-out texts",
        ),
    ),
    Entry(
        "regmix",
        RegMix,
        static,
        "Liu et al. 2024, arXiv:2407.01492; sail-sg/regmix",
        (
            "the runs have the real model's size, start from the base model and number tens, not 512 tiny ones",
            "what is regressed is the weighted mean of the domains' held-out losses",
            "trees stop by runs that are held back, not by the test runs; leaves may hold fewer than twenty runs",
            "all mixtures tied with the best 128 are averaged; the original takes what an unstable sort puts first",
        ),
    ),
    Entry(
        "mixing_laws",
        MixingLaws,
        static,
        "Ye et al. 2024, arXiv:2403.16952; yegcjs/mixinglaws",
        (
            "K is a shift of t on the simplex and is not fitted apart",
            "scipy's least squares from ten starts where the original draws thousands for L-BFGS",
            "the minimum is found by a convex solver with a small divergence penalty, not on a grid of powers of two",
            "laws of model size and of steps are left out: the runs predict their own length",
        ),
    ),
    Entry(
        "olmix",
        Olmix,
        static,
        "allenai/olmix, `olmix/fit/utils.py`",
        (
            "the law keeps a constant C that olmix's does not have, and its exponent is fitted with it",
            "mirror descent instead of an interior-point solver; equal to its recorded solutions",
        ),
    ),
)
