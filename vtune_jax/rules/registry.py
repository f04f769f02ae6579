"""The published methods, collected from the files of this folder.

A file takes part by holding a constant `PUBLISHED`; no list is edited, and importing a method's file changes nothing
elsewhere.
"""

import pkgutil
from importlib import import_module
from pathlib import Path

from vtune_jax.rules.config import MethodConfig, Published


def collected(folder: Path, package: str) -> tuple[Published, ...]:
    """What the modules of a package publish, by place and then by name.

    Args:
        folder: of the package.
        package: its full name.

    Raises:
        ValueError: two methods of the same name.
    """
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    # This module cannot import itself while it is being made.
    modules = [import_module(f"{package}.{name}") for name in names if f"{package}.{name}" != __name__]
    found = [module.PUBLISHED for module in modules if hasattr(module, "PUBLISHED")]
    taken: dict[str, Published] = {}
    for entry in found:
        if entry.name in taken:
            both = f"{taken[entry.name].config.__qualname__} and {entry.config.__qualname__}"
            raise ValueError(f"two methods are called '{entry.name}': {both}.")
        taken[entry.name] = entry
    return tuple(sorted(found, key=lambda entry: (entry.place, entry.name)))


METHODS: tuple[Published, ...] = collected(Path(__file__).parent, __name__.rpartition(".")[0])
"""In the order of the documentation."""


def method_configs() -> tuple[type[MethodConfig], ...]:
    """The configs of all methods, told apart in a config file by their `name`."""
    return tuple(entry.config for entry in METHODS)
