"""Published rules as records of pure functions; `METHODS` lists them, README.md says how to add another.

>>> import jax.numpy as jnp
>>> from vtune_jax import rules
>>> from vtune_jax.core.types import LossSums, Observation, Targets
>>> prior = jnp.array([0.5, 0.5])
>>> targets = Targets(initial=jnp.array([3.0, 3.0]), target=jnp.array([2.0, 2.0]),
...                   target_error=jnp.zeros(2), prior=prior)
>>> method = rules.velocitune(step_size=1.0)
>>> history = method.init(targets)
>>> heldout = LossSums(nats=jnp.array([2250.0, 2750.0]), tokens=jnp.array([1000, 1000]))
>>> evidence = Observation(heldout, heldout, trained_tokens=jnp.zeros(2), step=jnp.array(100))
>>> weights = method.update(prior, method.observe(history, evidence), targets)
>>> [round(float(w), 3) for w in weights]  # a quarter of the way left against three quarters: odds of exp(0.5)
[0.378, 0.622]
"""

from vtune_jax.core.priors import prior_weights, stratified_weights, unimax_weights
from vtune_jax.rules.ado import Ado, ado
from vtune_jax.rules.aioli import Aioli, aioli
from vtune_jax.rules.config import MethodConfig
from vtune_jax.rules.dbl import DynamicBatchLoading, dynamic_batch_loading
from vtune_jax.rules.doge import DoGE, doge
from vtune_jax.rules.doremi import DoReMi, doremi
from vtune_jax.rules.grape import Grape, grape
from vtune_jax.rules.group_dro import GroupDro, cvar_dro, group_dro
from vtune_jax.rules.mixer import Mixer
from vtune_jax.rules.mixing_laws import MixingLaws
from vtune_jax.rules.odm import Odm, odm
from vtune_jax.rules.olmix import Olmix
from vtune_jax.rules.registry import METHODS, method_configs
from vtune_jax.rules.regmix import RegMix
from vtune_jax.rules.skillit import SkillIt, skillit
from vtune_jax.rules.static import Static, static
from vtune_jax.rules.velocitune import Velocitune, velocitune

__all__ = [
    "METHODS",
    "Ado",
    "Aioli",
    "DoGE",
    "DoReMi",
    "DynamicBatchLoading",
    "Grape",
    "GroupDro",
    "MethodConfig",
    "Mixer",
    "MixingLaws",
    "Odm",
    "Olmix",
    "RegMix",
    "SkillIt",
    "Static",
    "Velocitune",
    "ado",
    "aioli",
    "cvar_dro",
    "doge",
    "doremi",
    "dynamic_batch_loading",
    "grape",
    "group_dro",
    "method_configs",
    "odm",
    "prior_weights",
    "skillit",
    "static",
    "stratified_weights",
    "unimax_weights",
    "velocitune",
]
