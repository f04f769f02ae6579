"""Writes the table of methods in BUILD.md from `vtune_jax.rules.registry`: python -m experiments.methods"""

import dataclasses

import jax.numpy as jnp

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.core.needs import NEEDS
from vtune_jax.core.types import Targets
from vtune_jax.rules import METHODS
from vtune_jax.rules.config import Arm
from vtune_jax.rules.registry import Entry


def methods_table() -> str:
    """Every method with its source, its options, what it carries and its departures; then what methods may need."""
    needs = markdown(["need", "what the trainer supplies"], [[f"`{name}`", what] for name, what in NEEDS.items()])
    return "\n\n".join([*map(described, METHODS), needs.replace("---:", "---")])


def described(entry: Entry) -> str:
    """One method in a paragraph."""
    arm = entry.config()
    shared = {field.name for field in dataclasses.fields(Arm)}
    options = {name: value for name, value in vars(arm).items() if name not in shared}
    shown = ", ".join(f"`{name} = {value!r}`" for name, value in options.items()) or "none"
    needs = ", ".join(f"`{need}`" for need in sorted(arm.build().needs)) or "nothing"
    text = f"**{entry.name}**, `rules.{entry.factory.__name__}` ({entry.source}). Needs: {needs}. "
    text += f"Carries: {carried(entry)}. Options: {shown}."
    return text + "".join(f"\n- Departure: {departure}." for departure in entry.departures)


def carried(entry: Entry) -> str:
    """The memory beside the losses of the last observations."""
    some = jnp.array([0.5, 0.5])
    memory = entry.factory().init(Targets(some, some, some, some)).memory
    if hasattr(memory, "_fields"):
        return ", ".join(f"`{name}`" for name in memory._fields)
    return "a score per domain" if hasattr(memory, "shape") else "nothing"


if __name__ == "__main__":
    replace_block(ROOT / "BUILD.md", "methods", methods_table())
