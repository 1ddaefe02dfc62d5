"""Differences between the variables of a checkpoint and those of a model, and short lists of their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]
_Tree = dict[str, "_Tree"]

_NAMED = 3


class Difference(NamedTuple):
    """Names of variables that differ.

    Attributes:
      missing: Variables of the model that are not in the checkpoint.
      reshaped: Variables whose shape differs.
      unexpected: Variables of the checkpoint that the model does not have.
      shapes: (shape in the checkpoint, shape in the model) of each variable in `reshaped`.
    """

    missing: list[str]
    reshaped: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[Shape, Shape]]

    @property
    def is_none(self) -> bool:
        return not (self.missing or self.reshaped or self.unexpected)

    def lists(self) -> dict[str, list[str]]:
        """The names by kind of difference, with the shapes of those that are reshaped."""
        reshaped = [f"{name} {self.shapes[name][0]} instead of {self.shapes[name][1]}" for name in self.reshaped]
        lists = {
            "missing from it": self.missing,
            "of another shape": reshaped,
            "in it but unknown here": self.unexpected,
        }
        return {what: names for what, names in lists.items() if names}

    def summary(self) -> str:
        """The number of variables of each kind, and the names of the first ones."""
        return "; ".join(
            f"{len(names)} variables are {what}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
            for what, names in self.lists().items()
        )


def compare(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Difference:
    """Compares the variables of a checkpoint with those of a model, both as shapes by name."""
    shapes = {name: (found[name], wanted[name]) for name in wanted if name in found and found[name] != wanted[name]}
    return Difference(_without(wanted, found), list(shapes), sorted(_without(found, wanted)), shapes)


def _without(names: Collection[str], others: Collection[str]) -> list[str]:
    return [name for name in names if name not in others]


def compact_names(names: Iterable[str], depth: int) -> list[str]:
    """Abbreviates object paths: `a/b/x` and `a/b/y` become `a/b/{x,y}`, which a shell expands again.

    Args:
      names: Slash-separated paths, none of which is the beginning of another.
      depth: Number of leading parts that the paths in one line share.
    """
    groups: dict[str, _Tree] = {}
    for name in sorted(names):
        parts = name.split("/")
        tree = groups.setdefault("/".join(parts[:depth]), {})
        for part in parts[depth:]:
            tree = tree.setdefault(part, {})
    return [_join(group, _render(tree)) for group, tree in groups.items()]


def _render(tree: _Tree) -> str:
    parts_before: dict[str, list[str]] = {}
    for part, rest in tree.items():
        parts_before.setdefault(_render(rest), []).append(part)
    return _braces([_join(_braces(parts), rest) for rest, parts in parts_before.items()])


def _join(part: str, rest: str) -> str:
    return f"{part}/{rest}" if rest else part


def _braces(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}" if parts else ""
