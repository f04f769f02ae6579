"""The laws by name, found in the modules of this folder: each module with a constant `LAW` brings a law."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import vtune_jax.fits.laws as folder
from vtune_jax.fits.laws.law import Law


@functools.cache
def known_laws() -> Mapping[str, Law[Any]]:
    """Every law by its name.

    Raises:
        ValueError: two modules bring laws of the same name.
    """
    laws: dict[str, Law[Any]] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        law = getattr(importlib.import_module(f"{folder.__name__}.{module.name}"), "LAW", None)
        if law is None:
            continue
        if law.name in laws:
            raise ValueError(f"two modules of {folder.__name__} bring a law {law.name!r}, one is {module.name}.")
        laws[law.name] = law
    return MappingProxyType(dict(sorted(laws.items())))


def law_named(name: str) -> Law[Any]:
    """The law of this name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in known_laws():
        known = ", ".join(f"{law.name} ({law.formula})" for law in known_laws().values())
        raise ValueError(f"unknown law {name!r}; known are {known}.")
    return known_laws()[name]
