"""Parts found by looking: a module of a package takes part by holding a constant, so that no list has to be edited."""

import importlib
import pkgutil
from typing import Any


def constants_of(package: str, name: str) -> list[Any]:
    """The constants of this name in the modules of a package, in the order of the modules' names.

    To be called by a function, not on import: every module of the package is imported here.

    Args:
        package: its full name.
        name: of the constant; modules without it are passed over.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    modules = [importlib.import_module(f"{package}.{module}") for module in names]
    return [getattr(module, name) for module in modules if hasattr(module, name)]
