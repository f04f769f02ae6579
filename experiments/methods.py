"""Writes the table of methods in BUILD.md from `vtune_jax.rules.table`: python -m experiments.methods"""

from experiments.tables import ROOT, replace_block
from vtune_jax.rules import METHODS


def methods_table() -> str:
    """Every method with its source, its options and its departures."""
    parts = []
    for entry in METHODS:
        method = entry.config()
        options = {name: value for name, value in vars(method).items() if name not in ("name", "label")}
        shown = ", ".join(f"`{name} = {value!r}`" for name, value in options.items()) or "none"
        needs = ", ".join(sorted(method.build().needs)) or "nothing"
        parts.append(f"**{entry.name}** ({entry.source}). Needs: {needs}. Options: {shown}.")
        parts[-1] += "".join(f"\n- Departure: {departure}." for departure in entry.departures)
    return "\n\n".join(parts)


if __name__ == "__main__":
    replace_block(ROOT / "BUILD.md", "methods", methods_table())
