"""The laws by name. One more law is one file with a `Law`, and a line here."""

from vtune_jax.fits.laws.annealing import LRA
from vtune_jax.fits.laws.chinchilla import LND
from vtune_jax.fits.laws.law import Law
from vtune_jax.fits.laws.power_law import LD

LAWS: dict[str, Law] = {law.name: law for law in (LD, LND, LRA)}


def law_named(name: str) -> Law:
    """The law of this name.

    Raises:
        ValueError: there is none; says which there are.
    """
    if name not in LAWS:
        known = ", ".join(f"{law.name} ({law.formula})" for law in LAWS.values())
        raise ValueError(f"unknown law {name!r}; known are {known}.")
    return LAWS[name]
