"""The house plan, kept by reading imports; nothing is executed."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vtune_jax"

BELOW = {
    "errors": set(),
    "memory": set(),
    "settings": {"errors"},
    "progress": set(),
    "core": {"errors"},
    "rules": {"core", "errors"},
    "fits": {"core", "errors"},
    "data": {"core", "errors"},
    "models": {"core", "errors"},
    "train": {"core", "rules", "data", "models", "errors"},
    "report": {"errors"},
    "doctor": set(),
    "config": {"settings", "core", "rules", "fits", "data", "models", "train", "errors"},
    "stages": {
        "config",
        "doctor",
        "settings",
        "progress",
        "core",
        "rules",
        "fits",
        "data",
        "models",
        "train",
        "report",
        "errors",
    },
    "fitting": {"fits", "report", "errors"},
    "cli": {"config", "stages", "fitting", "progress", "memory", "doctor", "report", "train", "errors"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""What each room of the package may import from the others."""

OUTSIDE = {
    "core": {"jax", "numpy", "jaxtyping"},
    "rules": {"jax", "numpy", "jaxtyping"},
    "fits": {"jax", "numpy", "jaxtyping", "scipy", "lightgbm"},
    "data": {"jax", "numpy", "jaxtyping", "grain", "array_record", "ray", "tokenizers", "pyarrow", "zstandard"},
    "models": {"jax", "numpy", "jaxtyping", "flax"},
    "train": {"jax", "numpy", "jaxtyping", "optax", "orbax"},
    "report": {"plotly", "matplotlib", "rich"},
    "config": {"numpy"},
    "fitting": {"numpy", "jax"},
    "stages": {"jax", "numpy", "jaxtyping", "rich", "scipy"},
    "progress": {"rich"},
    "doctor": {"jax"},
    "cli": {"rich"},
}
"""What each room may import from elsewhere, beside the standard library."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "vtune_jax":
                yield from (f"vtune_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_rooms_and_the_libraries_of_its_own(path):
    import sys

    ours = {name.split(".")[1] for name in imports(path) if name.startswith("vtune_jax.")}
    others = {name.split(".")[0] for name in imports(path) if not name.startswith("vtune_jax")}
    here = room(path)
    assert ours - {here, "__version__"} <= BELOW[here]
    assert others - set(sys.stdlib_module_names) <= OUTSIDE.get(here, set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_and_is_one_idea(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400


def test_the_layers_have_no_cycle():
    order = list(BELOW)
    for name, below in BELOW.items():
        assert all(order.index(lower) < order.index(name) for lower in below if name != "__init__"), name


def test_rules_can_be_used_without_the_trainers_libraries():
    import subprocess
    import sys

    program = (
        "import sys; from vtune_jax import rules; "
        "print(sorted({'flax', 'grain', 'optax', 'orbax', 'tokenizers'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
