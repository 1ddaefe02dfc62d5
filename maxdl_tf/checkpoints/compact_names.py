"""Hundreds of variables by name in a few lines."""

from __future__ import annotations

from collections.abc import Iterable

_Tree = dict[str, "_Tree"]


def compact_names(names: Iterable[str], depth: int) -> list[str]:
    """Object paths in short: `a/b/x` and `a/b/y` are `a/b/{x,y}`, which a shell expands to the two again.

    Args:
      names: Slash-separated paths, none of which goes on where another ends.
      depth: How many first parts of a path a line is for.
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
