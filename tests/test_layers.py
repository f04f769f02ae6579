"""The house plan, kept by reading imports; nothing is executed. Imports for type checking count like all others."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vtune_jax"

ROOMS = {
    "errors": set(),
    "settings": set(),
    "core": {"jax", "numpy", "jaxtyping"},
    "machine": {"jax", "numpy", "jaxtyping", "rich", "ray", "orjson"},
    "rules": {"jax", "numpy", "jaxtyping"},
    "fits": {"jax", "numpy", "jaxtyping", "scipy"},
    "proposals": {"jax", "numpy", "jaxtyping", "scipy", "lightgbm"},
    "data.tokens": {"numpy", "jaxtyping", "grain", "array_record"},
    "data.corpora": {"numpy", "tokenizers", "pyarrow", "zstandard", "array_record", "gguf"},
    "data.mixture": {"jax", "numpy", "jaxtyping", "grain"},
    "data": set(),
    "models": {"jax", "numpy", "jaxtyping", "flax", "safetensors", "gguf"},
    "evals": {"jax", "numpy", "jaxtyping"},
    "train": {"jax", "numpy", "jaxtyping", "optax", "orbax"},
    "report": {"plotly", "matplotlib", "rich", "jinja2"},
    "experiment": {"numpy"},
    "stages": {"jax", "numpy", "jaxtyping", "scipy"},
    "cli": {"rich", "numpy", "jax"},
    "": set(),  # the package itself, and `python -m`
}
"""The rooms, lowest first, and the libraries of their own. A room imports from those before it."""

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(("vtune_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in FILES
}


def room(module):
    """The longest room whose name the module's begins with."""
    inside = module.removeprefix("vtune_jax").removeprefix(".")
    return max((name for name in ROOMS if inside == name or inside.startswith(f"{name}.")), key=len, default="")


def imports(path):
    """Whole names of what is imported: modules where there is one of that name, else what they are taken from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


GRAPH = {
    module: {name for name in imports(path) if name.startswith("vtune_jax")} - {module}
    for module, path in MODULES.items()
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_lower_rooms_and_the_libraries_of_its_own(module):
    order, here = list(ROOMS), room(module)
    for lower in GRAPH[module]:
        assert lower in MODULES, f"{module} imports {lower}, which does not exist"
        # The version of the package is no room.
        assert order.index(room(lower)) <= order.index(here) or lower == "vtune_jax", f"{module} imports {lower}"
    others = {name.split(".")[0] for name in imports(MODULES[module]) if not name.startswith("vtune_jax")}
    assert others - set(sys.stdlib_module_names) <= ROOMS[here]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_and_is_one_idea(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_circle_for_type_checking_would_be_seen():
    assert "vtune_jax.core.types" in GRAPH["vtune_jax.core.history"]
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vtune_jax.core.types import Targets\n"
    fake = PACKAGE.parent / "fake.py"

    class Fake:
        def read_text(self):
            return text

    assert "vtune_jax.core.types" in set(imports(Fake())), fake


def test_rules_can_be_used_without_the_trainers_libraries():
    program = (
        "import sys; from vtune_jax import rules; "
        "print(sorted({'flax', 'grain', 'optax', 'orbax', 'tokenizers'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
