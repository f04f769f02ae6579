"""Writes the list of methods in `vtune_jax/rules/README.md` from the files beside it: python -m experiments.methods"""

import dataclasses

import jax.numpy as jnp

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.core.needs import NEEDS
from vtune_jax.core.types import Targets
from vtune_jax.rules import METHODS, MethodConfig
from vtune_jax.rules.config import Published

PAGE = ROOT / "vtune_jax" / "rules" / "README.md"


def methods_table() -> str:
    """Every method with its source, its options, what it carries and its departures; then what methods may need."""
    needs = markdown(
        ["need", "what is supplied"], [[f"`{need.name}`", need.meaning] for need in NEEDS.values()]
    ).replace("---:", "---")
    return "\n\n".join([*map(described, METHODS), f"### Needs\n\n{needs}"])


def described(entry: Published) -> str:
    """One method in a paragraph."""
    config = entry.config()
    shared = {field.name for field in dataclasses.fields(MethodConfig)}
    options = {name: value for name, value in vars(config).items() if name not in shared}
    shown = ", ".join(f"`{name} = {value!r}`" for name, value in options.items()) or "none"
    needs = ", ".join(f"`{need}`" for need in sorted(config.build().needs)) or "nothing"
    file = f"{entry.config.__module__.rpartition('.')[2]}.py"
    text = f"**{entry.name}**, `rules.{entry.config.__qualname__}` in [{file}]({file}) ({entry.source}). "
    text += f"Needs: {needs}. Carries: {carried(entry)}. Options: {shown}."
    return text + "".join(f"\n- Departure: {departure}." for departure in entry.departures)


def carried(entry: Published) -> str:
    """The memory beside the losses of the last observations."""
    some = jnp.array([0.5, 0.5])
    memory = entry.factory().init(Targets(some, some, some, some)).memory
    if hasattr(memory, "_fields"):
        return ", ".join(f"`{name}`" for name in memory._fields)
    return "a score per domain" if hasattr(memory, "shape") else "nothing"


if __name__ == "__main__":
    replace_block(PAGE, "methods", methods_table())
