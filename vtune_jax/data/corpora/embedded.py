"""Real text that every installation has: the embedded corpora of the quick start, which need no download.

They are read as files of the standard library and of this package's dependencies; nothing is imported or run. The text
depends only on the versions of Python and of the installed `DISTRIBUTIONS`.
"""

import ast
import functools
import hashlib
import platform
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from vtune_jax.errors import UserError

P = TypeVar("P", bound=PurePath)

EMBEDDED_VERSION = 1
"""Raised when the same installed files would give other documents."""

MAX_DOCUMENT_CHARACTERS = 6000
DISTRIBUTIONS = (
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "plotly",
    "pyarrow",
    "rich",
    "scipy",
    "tokenizers",
    "zstandard",
)
_STDLIB_LEFT_OUT = {
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "turtledemo",
    "config",
    "__pycache__",
}


@functools.cache
def read(name: str) -> tuple[str, ...]:
    """The documents of an embedded corpus, in a fixed order; kept in memory, all corpora together 10 MB.

    Raises:
        UserError: there is no corpus of that name.
    """
    if name not in CORPORA:
        raise UserError(f"there is no embedded corpus '{name}'", f"use one of {', '.join(CORPORA)}")
    return tuple(piece for texts, megabytes in CORPORA[name] for piece in _up_to(texts(), round(megabytes * 1e6)))


def _up_to(texts: Iterable[str], size: int) -> Iterator[str]:
    """Pieces of the texts, as many as fit into a size in bytes."""
    for text in texts:
        for piece in cut(text, MAX_DOCUMENT_CHARACTERS):
            size -= len(piece.encode())
            if size < 0:
                return
            yield piece


def fingerprint(name: str) -> dict[str, str]:
    """What the documents depend on."""
    return {
        "embedded": f"{name}, version {EMBEDDED_VERSION}",
        "python": platform.python_version(),
        **{package: version(package) for package in _installed()},
    }


def cut(text: str, characters: int) -> Iterator[str]:
    """Pieces of at most this many characters, cut at blank lines, or at line ends where a paragraph is longer."""
    piece = ""
    for paragraph in _paragraphs(text, characters):
        if piece and len(piece) + len(paragraph) > characters:
            yield piece.strip("\n")
            piece = ""
        piece += paragraph
    if piece.strip():
        yield piece.strip("\n")


def _paragraphs(text: str, characters: int) -> Iterator[str]:
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if len(paragraph) + 2 <= characters:
            yield paragraph + "\n\n"
            continue
        for line in paragraph.split("\n"):
            # A single line longer than a whole document is data, not text.
            if len(line) < characters:
                yield line + "\n"


def _python_source() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for relative in _in_hash_order(path.relative_to(root) for path in root.rglob("*.py")):
        folders = {"config" if part.startswith("config-") else part for part in relative.parts}
        if not folders & _STDLIB_LEFT_OUT:
            yield from _text(root / relative)


def _c_headers() -> Iterator[str]:
    for path in _files(("numpy", "scipy", "pyarrow"), lambda path: path.suffix in (".h", ".hpp")):
        yield from _text(path)


def _docstrings() -> Iterator[str]:
    return _docstrings_of(("numpy", "scipy"))


def _markdown() -> Iterator[str]:
    def wanted(path: PurePath) -> bool:
        prose = path.name == "METADATA" or path.name.upper().startswith(("LICENSE", "NOTICE", "README", "AUTHORS"))
        return path.suffix in (".md", ".rst") or (prose and path.suffix in ("", ".txt"))

    for path in _files(DISTRIBUTIONS, wanted):
        for text in _text(path):
            # The head of METADATA is a list of requirements; its text begins after the first blank line.
            yield text.partition("\n\n")[2] if path.name == "METADATA" else text


def _tests() -> Iterator[str]:
    for path in _files(("numpy", "scipy"), lambda path: path.suffix == ".py" and "tests" in path.parts):
        yield from _text(path)


def _stubs() -> Iterator[str]:
    for path in _files(("numpy", "scipy", "matplotlib", "pyarrow"), lambda path: path.suffix == ".pyi"):
        if "tests" not in path.parts:
            yield from _text(path)


def _prose() -> Iterator[str]:
    topics = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    for text in _text(topics):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Dict):
                constants = (value.value for value in node.values if isinstance(value, ast.Constant))
                yield from (text for text in constants if isinstance(text, str))
    yield from _docstrings_of(("matplotlib", "orbax-checkpoint", "rich", "jaxtyping"))


def _library_source() -> Iterator[str]:
    def wanted(path: PurePath) -> bool:
        return path.suffix == ".py" and "tests" not in path.parts and "testing" not in path.parts

    for path in _files(("jax", "flax", "optax", "grain"), wanted):
        yield from _text(path)


CORPORA: dict[str, tuple[tuple[Callable[[], Iterable[str]], float], ...]] = {
    "general": ((_prose, 1.8), (_library_source, 1.2)),
    "python": ((_python_source, 2.4),),
    "c_headers": ((_c_headers, 1.2),),
    "docstrings": ((_docstrings, 2.0),),
    "markdown": ((_markdown, 0.7),),
    "tests": ((_tests, 1.6),),
    "stubs": ((_stubs, 0.5),),
}
"""From a corpus's name to its sources, each with a size in megabytes. The sizes differ on purpose. `general`, prose and
some code for a base model, shares no file with the other corpora."""


def _docstrings_of(packages: tuple[str, ...]) -> Iterator[str]:
    for path in _files(packages, lambda path: path.suffix == ".py" and "tests" not in path.parts):
        for text in _text(path):
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
            docstrings = (ast.get_docstring(node) for node in _definitions(tree))
            yield from (docstring for docstring in docstrings if docstring and len(docstring) > 200)


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    """What can have a docstring, in the order of `ast.walk`, but without a visit to every expression."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, Definition):
            yield node
        for field in ("body", "cases", "handlers", "orelse", "finalbody"):
            inner = getattr(node, field, None)
            # The body of a lambda is an expression.
            waiting.extend(inner if isinstance(inner, list) else ())


def _installed() -> list[str]:
    found = []
    for package in DISTRIBUTIONS:
        try:
            distribution(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found


def _files(packages: Iterable[str], wanted: Callable[[PurePath], bool]) -> Iterator[Path]:
    installed = set(_installed())
    recorded = {
        PurePosixPath(str(file)): file
        for package in packages
        if package in installed
        for file in distribution(package).files or []
    }
    yield from (Path(str(recorded[path].locate())) for path in _in_hash_order(filter(wanted, recorded)))


def _in_hash_order(paths: Iterable[P]) -> list[P]:
    """A fixed order that mixes packages and folders, so that a corpus cut short is still a fair sample."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())


def _text(path: Path) -> Iterator[str]:
    try:
        yield path.read_bytes().decode("utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return
