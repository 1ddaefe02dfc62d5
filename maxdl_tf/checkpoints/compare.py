"""How the variables of a checkpoint differ from those that are wanted, told in few words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]

_NAMED = 3


class Difference(NamedTuple):
    """Names of variables, by what is wrong with them; each in order.

    Attributes:
      missing: Wanted, but not in the checkpoint.
      reshaped: In both, but not of one shape.
      unexpected: In the checkpoint, but not wanted.
      shapes: Of each that is reshaped: (shape in the checkpoint, wanted shape).
    """

    missing: list[str]
    reshaped: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[Shape, Shape]]

    @property
    def is_none(self) -> bool:
        return not (self.missing or self.reshaped or self.unexpected)

    def lists(self) -> dict[str, list[str]]:
        """What is wrong to the variables with which it is, shapes beside those that are reshaped."""
        reshaped = [f"{name} {self.shapes[name][0]} instead of {self.shapes[name][1]}" for name in self.reshaped]
        lists = {
            "missing from it": self.missing,
            "of another shape": reshaped,
            "in it but unknown here": self.unexpected,
        }
        return {what: names for what, names in lists.items() if names}

    def summary(self) -> str:
        """How many variables there are of each kind, and the first of them by name."""
        return "; ".join(
            f"{len(names)} variables are {what}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
            for what, names in self.lists().items()
        )


def compare(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Difference:
    """Compares the variables in a checkpoint with those that are wanted, both shapes by name."""
    shapes = {name: (found[name], wanted[name]) for name in wanted if name in found and found[name] != wanted[name]}
    return Difference(_without(wanted, found), list(shapes), sorted(_without(found, wanted)), shapes)


def _without(names: Collection[str], others: Collection[str]) -> list[str]:
    return [name for name in names if name not in others]
