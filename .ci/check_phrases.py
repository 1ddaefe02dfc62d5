"""Finds phrases that this project does not use (CONTRIBUTING.md, "Style"), in code and documents; part of `make lint`.

    python .ci/check_phrases.py [FILE ...]    all files of the repository if none is given

The list is PHRASES: regular expressions, with what to write instead. A phrase is found across line ends.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHRASES = {
    r"(?m)^\s+\w+: Of ": 'begin an argument\'s text with a noun: "Number of …", "Path of …"',
    r'"""Of ': "begin a docstring with a noun",
    r"says of (each|what|which|every)": '"predicts … for each"',
    r"what one does": '"usage"',
    r"(?<!\w )\bone (sees|expects|wants|has to)\b": "make the acting thing the subject",
    r"(leave|leaves|left) (it|them|--\w+|this) away": '"drop it"',
    r"\bmend(s|ed|ing)?\b": '"fix"',
    r"called (like|as) (them|the)\b": '"with matching names"',
    r"whose it is": "name the relation",
    r"\b(is|are) told\b": '"is reported"',
    r"\bso many\b": "name the number",
    r"\bfor people\b": '"human-readable"',
    r"\bof one's own\b": '"your own"',
    r"made of what\b": "name the parts",
    r"\bby heart\b": '"memorized"',
    r"[Nn]othing but \w+ and \w+": '"requires only"',
    r"\bas is told\b|\btells how\b": '"explains how"',
    r"\bhad other work to do\b|\bbeside other work\b": '"busy"',
    r"\bwhat (is|are) [\w ]{1,20} of (it|them)\b": "name the parts",
}
SUFFIXES = {".py", ".md", ".proto", ".textproto", ".toml", ".c", ".js", ".ipynb", ".sh"}
FOLDERS = ("maxdl_tf", "data_gen", "protos", "configs", "docs", "tests", ".ci")


def sources() -> list[Path]:
    found = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES]
    found += [*ROOT.glob("*.md"), ROOT / "setup.py", ROOT / "Makefile", ROOT / "BUILD"]
    return sorted(path for path in found if not path.name.endswith("_pb2.py") and path != Path(__file__).resolve())


def find(text: str) -> list[tuple[int, str, str]]:
    """(line, phrase, advice) of each phrase in a text."""
    # Line ends inside of comments and strings become spaces, one character for each, so that positions stay.
    joined = re.sub(r"\n[ \t]*(?:#|//|\"|')?[ \t]*", lambda gap: " " * len(gap.group()), text)
    found = []
    for pattern, advice in PHRASES.items():
        for match in re.finditer(pattern, text if pattern.startswith("(?m)") else joined):
            phrase = " ".join(match.group().split())
            line = text.count("\n", 0, match.start() + len(match.group()) - len(match.group().lstrip())) + 1
            found.append((line, phrase, advice))
    return sorted(found)


def main() -> int:
    paths = [Path(name).resolve() for name in sys.argv[1:]] or sources()
    status = 0
    for path in paths:
        for line, phrase, advice in find(path.read_text(encoding="utf-8")):
            print(f"{os.path.relpath(path, ROOT)}:{line}: {phrase!r}: {advice}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
