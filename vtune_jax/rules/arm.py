"""What the configs of all methods share: a label, and the constraints around the method."""

import dataclasses

from vtune_jax.core.constraints import with_floor
from vtune_jax.core.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A method as one arm of an experiment; a subclass adds hyper-parameters and says which `method` they make."""

    name: str = ""
    label: str = ""  # what the arm is called in files and tables; its name if empty
    floor: float = 0.0  # smallest weight of any domain

    def __post_init__(self) -> None:
        self.build()

    def method(self) -> Method:
        """The published method, with these hyper-parameters."""
        raise NotImplementedError

    def build(self) -> Method:
        """That method within its constraints."""
        return with_floor(self.method(), self.floor)
