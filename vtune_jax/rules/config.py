"""What the configs of all methods share: the constraints, the gate and the filter around the method.

A file of this folder that publishes a method holds its config, a subclass of `MethodConfig`, a factory derived from it
and a `PUBLISHED` record; `registry` finds the record by itself.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vtune_jax.core.constraints import constrained
from vtune_jax.core.contracts import checked
from vtune_jax.core.filters import FilterConfig, NoFilter, filtered, gated
from vtune_jax.core.numbers import (
    assert_fields,
    is_off,
    number,
    numbers_of,
    structure_of,
    with_numbers,
)
from vtune_jax.core.types import Method, Scalar

__all__ = [
    "MethodConfig",
    "Published",
    "factory_of",
    "is_off",
    "number",
    "numbers_of",
    "structure_of",
    "with_numbers",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method with its hyper-parameters; a subclass adds fields and says in `method` what they make.

    Every float field is a number that may be traced (`with_numbers`), unless `number(static=True)` marks it or its
    feature is switched off.
    """

    moves: ClassVar[bool] = True
    """Whether weights move in training; False for methods that keep one mixture for the whole run."""

    name: str = ""
    floor: float = number(0.0, high=1.0, off=0.0)  # smallest weight of any domain; 0: none
    ceiling: float = number(1.0, high=1.0, off=1.0)  # largest weight of any domain; 1: none
    largest_change: float = number(0.0, off=0.0)  # x: an update multiplies a weight by 1 / (1 + x) to 1 + x; 0: any
    trust_region: float = number(0.0, off=0.0)  # largest KL(weights || prior), nats; 0: any
    max_repeats: float = number(0.0, off=0.0)  # largest number of epochs that a weight may read of a domain; 0: any
    gate: float = number(0.0, off=0.0)  # a weight moves once its loss has changed by so many standard errors; 0: always
    filter: FilterConfig = NoFilter()  # smooths the losses that the method is shown

    def __post_init__(self) -> None:
        assert_fields(self)
        self.build()

    def method(self) -> Method:
        """The published method with these hyper-parameters, without filter, gate and constraints."""
        raise TypeError(
            f"{type(self).__name__} is no method: use one of rules.METHODS, or a subclass that defines `method`."
        )

    def build(self) -> Method:
        """The method on filtered losses, behind its gate and within its constraints.

        Raises:
            ValueError: constraints that contradict each other; when called, what `contracts.checked` refuses.
        """
        try:
            hash(self)
        except TypeError:  # some number is traced, see `with_numbers`
            return self._made()
        return _kept(self)

    def _made(self) -> Method:
        method, by = self.method(), self.filter.build()
        method = gated(method if by is None else filtered(method, by), self.gate)
        return checked(
            constrained(
                method,
                floor=self.floor,
                ceiling=self.ceiling,
                largest_change=_or_infinite(self.largest_change),
                trust_region=_or_infinite(self.trust_region),
                max_repeats=_or_infinite(self.max_repeats),
            )
        )

    def intervals(self, domains: int) -> int:
        """Updates until the weights first follow the evidence: the length of a first round of probes, else 1."""
        return 1

    def mixture(self, prior: np.ndarray, tokens: np.ndarray, budget: float | int) -> np.ndarray:
        """The weights that the run starts from, and its prior: the experiment's prior unless the method has its own.

        Args:
            prior: of the experiment, on the simplex.
            tokens: available per domain.
            budget: training tokens of the whole run.
        """
        return prior

    def assert_fits(self, names: tuple[str, ...]) -> None:
        """Refuses hyper-parameters that do not fit a corpus.

        Args:
            names: of its domains, in their order.

        Raises:
            ValueError: naming the field.
        """


@functools.lru_cache(maxsize=256)
def _kept(config: MethodConfig) -> Method:
    """A method has no state: configs that are equal share it, since a config is built wherever it is looked at."""
    return config._made()


Factory = Callable[..., Method]
"""Keyword arguments are the fields of a config; returns the published method alone."""


def factory_of(config: type[MethodConfig], **fixed: Any) -> Factory:
    """A function that makes the published method, for somebody's own loop, under `jit`, `vmap` and `grad` as well.

    Its keyword arguments are the fields that the config adds to `MethodConfig`; floats may be traced arrays, tuples any
    sequence or array. Constraints and filters are not among them: they belong to the config, `config(...).build()`.
    It raises ValueError or TypeError for what the config's fields do not take.

    Args:
        config: the class.
        fixed: fields that are not left open.
    """
    shared = {field.name for field in dataclasses.fields(MethodConfig)}
    open_fields = {
        field.name: field
        for field in dataclasses.fields(config)
        if field.name not in shared and field.name not in fixed
    }

    def make(**options: Any) -> Method:
        if unknown := set(options) - set(open_fields):
            raise TypeError(
                f"{make.__name__} takes {', '.join(open_fields)}, got {', '.join(sorted(unknown))}; "
                f"constraints and filters are options of {config.__name__}."
            )
        plain = {name: _frozen(value) for name, value in options.items()}
        traced = {name: value for name, value in plain.items() if _is_traced(value)}
        known = {name: value for name, value in plain.items() if name not in traced}
        made = with_numbers(config(**fixed, **known), traced)
        assert_fields(made)
        return checked(made.method())

    make.__name__ = make.__qualname__ = config.name
    make.__doc__ = config.__doc__
    make.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for name, field in open_fields.items()
        ],
        return_annotation=Method,
    )
    return make


class Published(NamedTuple):
    """A published method, as the last lines of its file describe it."""

    config: type[MethodConfig]
    source: str  # paper and code
    departures: tuple[str, ...] = ()  # where we do otherwise than the source, a sentence each
    place: int = 1000  # in the documentation; methods of equal place are ordered by name

    @property
    def name(self) -> str:
        """What the method is called in a config file."""
        return self.config.name

    @property
    def factory(self) -> Factory:
        """See `factory_of`."""
        return factory_of(self.config)


def _or_infinite(value: Scalar) -> Scalar:
    return math.inf if is_off(value) else value


def _frozen(value: Any) -> Any:
    """Lists and arrays as nested tuples, like a config from a file; scalars as they are."""
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    return (
        tuple(_frozen(entry) for entry in value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )


def _is_traced(value: Any) -> bool:
    """A scalar array, traced or not, in contrast to a Python number."""
    return hasattr(value, "shape") and not isinstance(value, int | float)
