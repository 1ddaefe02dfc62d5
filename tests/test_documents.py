"""Documents are true: links, paths, commands, flags and cited sections exist."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from unittest import mock

import pytest

from maxdl_tf import check_data, command_help, config
from maxdl_tf.data_gen import convert
from tests.examples import (
    code_blocks,
    documents,
    examples_of_config,
    examples_of_document,
    examples_of_help,
    examples_of_make,
)
from tests.helpers import REPOSITORY, SCRIPTS
from tests.test_configs import CONFIGS

DOCUMENTS = documents()
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
# Folders of the repository; a path that begins with one of them must exist.
TOP = ("maxdl_tf/", "data_gen/", "configs/", "protos/", "docs/", "tests/", ".ci/")
COMMANDS = [
    *map(importlib.import_module, SCRIPTS.values()),
    *convert.CONVERTERS.values(),
    *check_data.CHECKS.values(),
]
EXAMPLES = [
    *(example for path in DOCUMENTS for example in examples_of_document(path)),
    *(example for path in CONFIGS for example in examples_of_config(path)),
    *(example for module in COMMANDS for example in examples_of_help(module)),
    *examples_of_make("nuclei"),
]
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


def anchors(path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "code", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{path.name} links to {target}, which has no such heading"


@every_document
def test_paths_exist(path):
    for word in re.findall(r"[\w./*{},-]+", path.read_text(encoding="utf-8")):
        word = word.rstrip(".,")
        if word.startswith(TOP) and not set("*{}") & set(word) and not word.endswith("_pb2.py"):
            assert (REPOSITORY / word).exists() or (path.parent / word).exists(), f"{path.name} names {word}"


def test_an_override_of_make_reaches_all_commands_with_the_experiment():
    override = "model { num_slots: 32 } training { initial_checkpoint: 'a  b' }"
    words = [example.words for example in examples_of_make("nuclei", f"OVERRIDE={override}")]
    of_experiment = [command for command in words if "--config_file" in command]
    assert len(of_experiment) == 3
    assert all(command[command.index("--override") + 1] == override for command in of_experiment)


def test_every_document_is_in_the_index():
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in DOCUMENTS if path.parent == ARCHITECTURE.parent and f"({path.name})" not in index]
    assert missing == ["README.md"]


def help_of(program: str, subcommand: str | None) -> str:
    module = SCRIPTS.get(program) or program.split()[-1].removesuffix(".py").replace("/", ".")
    arguments = [program, *([subcommand] if subcommand else []), "--help"]
    run = importlib.import_module(module).run
    argv = mock.patch.object(sys, "argv", arguments)
    with argv, mock.patch("builtins.print") as printed, pytest.raises(SystemExit) as stopped:
        run()
    assert not stopped.value.code, f"{' '.join(arguments)} ends with status {stopped.value.code}"
    return "\n".join(str(call.args[0]) for call in printed.call_args_list if call.args)


def flags_of(program: str, subcommand: str | None, known={}) -> set[str]:  # noqa: B006
    """The flags of a command, with `no` and a boolean's name for its opposite."""
    key = program, subcommand
    if key not in known:
        found = re.findall(r"^  --(\[no\])?(\w+)", help_of(*key), re.MULTILINE)
        known[key] = {name for _, name in found} | {f"no{name}" for opposite, name in found if opposite}
        known[key] |= {flag.lstrip("-") for flag in command_help.FLAGS}
    return known[key]


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{example.where} {example.program}" for example in EXAMPLES])
def test_examples_use_flags_and_files_that_exist(example):
    assert example.program in SCRIPTS or example.program.startswith("python"), f"there is no {example.program}"
    subcommand = example.words[0] if example.words and re.fullmatch(r"[a-z]\w+", example.words[0]) else None
    used = [match.group(1) for match in map(re.compile(r"--(\w+)").match, example.words) if match]
    unknown = set(used) - flags_of(example.program, subcommand)
    assert not unknown, f"{example.where}: {example.program} has no --{', --'.join(sorted(unknown))}"
    for word in example.words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if value.startswith(TOP) and not set("*…") & set(value):
            assert (REPOSITORY / value).exists(), f"{example.where} names {value}"


def overridden() -> list:
    """The examples that name a config of this repository, those of the configs' own heads left out."""
    return [example for example in EXAMPLES if not example.where.startswith("configs/") and config_of(example)]


def config_of(example) -> str | None:
    pairs = zip(example.words, example.words[1:])
    return next((value for flag, value in pairs if flag == "--config_file" and value.startswith("configs/")), None)


@pytest.mark.parametrize("example", overridden(), ids=lambda example: example.where)
def test_overrides_in_examples_fit_their_config(example):
    overrides = [value for flag, value in zip(example.words, example.words[1:]) if flag == "--override"]
    if not any("…" in text for text in overrides):
        config.load_experiment(str(REPOSITORY / config_of(example)), overrides)


def test_cited_sections_of_the_architecture_exist():
    numbers = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE))
    cited = {}
    sources = [
        path for name in TOP for path in (REPOSITORY / name).rglob("*") if path.suffix in (".py", ".proto", ".md")
    ]
    for path in sources:
        text = re.sub(r"\n\s*(?:#|//)?\s*", " ", path.read_text(encoding="utf-8"))
        for listed in re.findall(
            r"architecture(?:\.md)?,? sections? ((?:\d[\d.]*(?:, | and )?)+)", text, re.IGNORECASE
        ):
            cited.update(dict.fromkeys((number.strip(".") for number in re.findall(r"[\d.]+", listed)), path.name))
    assert len(cited) > 10, "the citations are not found"
    missing = {number: name for number, name in cited.items() if number and number not in numbers}
    assert not missing, f"docs/architecture.md lacks sections that are cited in {missing}"


def test_python_examples_compile():
    for path in DOCUMENTS:
        for line, language, content in code_blocks(path.read_text(encoding="utf-8")):
            if language == "python":
                compile(content, f"{path.name}:{line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def templates() -> list[str]:
    """Every string of the sources, with … for what an f-string fills in; also the lines of the Makefile."""
    found = (REPOSITORY / "Makefile").read_text(encoding="utf-8").splitlines()
    for path in [*(REPOSITORY / "maxdl_tf").rglob("*.py"), *(REPOSITORY / "data_gen").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_in_troubleshooting_are_those_of_the_program():
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    foreign = ("No module named", "RESOURCE_EXHAUSTED", "Killed", "OOM", "ResourceExhaustedError")
    ours = [message for message in messages if not message.startswith(foreign)]
    assert len(ours) > 15
    known = templates()
    stale = [
        message
        for message in ours
        if not any(all(part.strip() in template for part in message.split("…")) for template in known)
    ]
    assert not stale, f"no string of the program has {stale}"


def test_phrases_are_found_across_line_ends(tmp_path):
    checker = REPOSITORY / ".ci" / "check_phrases.py"
    text = tmp_path / "text.md"
    for content, status in (("A folder that is called\nlike them.\n", 1), ("A folder with the same name.\n", 0)):
        text.write_text(content, encoding="utf-8")
        done = subprocess.run([sys.executable, str(checker), str(text)], capture_output=True, text=True)
        assert (done.returncode, bool(done.stdout), done.stderr) == (status, bool(status), "")
