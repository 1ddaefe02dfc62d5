"""Finds the examples in documents, in the heads of configs and in docstrings, for tests that check them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.helpers import REPOSITORY

# What starts an example command: an installed command, or the script that the README names beside it.
_START = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:time )?(maxdl-[\w-]+|python3? maxdl_tf/\w+\.py|python3? -m maxdl_tf[\w.]*)(?= |$)"
)


class Example(NamedTuple):
    """One command line.

    Attributes:
      where: File and line, for messages.
      program: The command, such as "maxdl-train" or "python maxdl_tf/trainer.py".
      words: Its arguments.
    """

    where: str
    program: str
    words: list[str]


def documents() -> list[Path]:
    """The Markdown files of the repository."""
    folders = ("docs", "tests")
    return sorted([*REPOSITORY.glob("*.md"), *(path for name in folders for path in (REPOSITORY / name).rglob("*.md"))])


def code_blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line number of the first line, language, content) of each fenced block."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start()) + 2, match.group(1), match.group(2)


def examples_of_text(text: str, name: str, first_line: int = 1) -> Iterator[Example]:
    """The commands in lines of a shell; lines that a backslash ends are joined, lines of output are ignored."""
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        start, line = number, lines[number].strip()
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1].rstrip()} {lines[number].strip()}"
        number += 1
        for part in re.split(r" && | \| |; ", line):
            match = _START.match(part.strip())
            if match:
                words = shlex.split(part.strip()[match.end() :], comments=True)
                yield Example(f"{name}:{first_line + start}", match.group(1), words)


def examples_of_document(path: Path) -> Iterator[Example]:
    """The commands in the code blocks of a Markdown file, and those between backticks in its text."""
    text, name = path.read_text(encoding="utf-8"), str(path.relative_to(REPOSITORY))
    for first_line, language, content in code_blocks(text):
        if language in ("", "sh", "bash"):
            yield from examples_of_text(content, name, first_line)
    prose = re.sub(r"^```.*?^```", lambda block: "\n" * block.group().count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"`([^`\n]+)`", prose):
        if match.group(1).startswith(("maxdl-", "python ")):
            yield from examples_of_text(match.group(1), name, prose.count("\n", 0, match.start()) + 1)


def examples_of_config(path: Path) -> Iterator[Example]:
    """The commands in the comment at the top of a config."""
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    text = "\n".join(line.lstrip("#").strip() for line in header.split("\n"))
    yield from examples_of_text(text, str(path.relative_to(REPOSITORY)))


def examples_of_help(module) -> Iterator[Example]:
    """The commands in the help of a command: its module's docstring."""
    yield from examples_of_text(module.__doc__ or "", f"help of {module.__name__}")


def examples_of_make(target: str, *variables: str) -> Iterator[Example]:
    """The commands that a target of the Makefile runs; a variable is NAME=VALUE."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    arguments = ["make", "--dry-run", target, "DATA=folder of data", *variables]
    done = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    yield from examples_of_text(done.stdout, f"make {target}")
