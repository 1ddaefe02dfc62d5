"""The short form of names means exactly those names."""

import re

from maxdl_tf.checkpoints.compare import compact_names


def expand(text: str) -> set[str]:
    """What a shell makes of nested braces: the innermost first."""
    innermost = re.search(r"\{([^{}]*)\}", text)
    if not innermost:
        return {text}
    before, after = text[: innermost.start()], text[innermost.end() :]
    return set().union(*(expand(before + part + after) for part in innermost.group(1).split(",")))


def test_a_line_for_each_beginning():
    names = ["m/s1/b1/x/kernel", "m/s1/b1/x/bias", "m/s1/b2/x/kernel", "m/s1/b2/x/bias", "m/s2/b1/kernel", "m/memory"]
    assert compact_names(names, depth=2) == ["m/memory", "m/s1/{b1,b2}/x/{bias,kernel}", "m/s2/b1/kernel"]
    assert compact_names(names, depth=9) == sorted(names)
    assert compact_names([], depth=2) == []


def test_braces_expand_to_the_names_and_no_others():
    names = {
        f"m/{stage}/{block}/{layer}/{part}"
        for stage, blocks in (("s1", 3), ("s2", 2))
        for block in range(blocks)
        for layer in ("conv", "norm", *(["shortcut"] if block == 0 else []))
        for part in (("mean", "beta") if layer == "norm" else ("kernel",))
    } | {"m/extra"}
    for depth in (1, 2, 3):
        lines = compact_names(names, depth)
        assert sum(len(expand(line)) for line in lines) == len(names)
        assert set().union(*(expand(line) for line in lines)) == names
