"""The texts that commands print on request: --help, --version, the packaged experiments and the fields of one."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Sequence

from absl import flags

import maxdl_tf
from maxdl_tf import configs
from maxdl_tf.files import storage

_HELP_FLAGS = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull")
FLAGS = (*_HELP_FLAGS, "--version", "--list_configs", "--list_fields")
_WIDTH = 100
# In the order of `Experiment`.
_FIELD_FILES = ("experiment", "model", "loss", "dataset", "training", "evaluation")


def requested_text(program: str, arguments: Sequence[str], docstring: str, flag_values: flags.FlagValues) -> str | None:
    """The text that one of `FLAGS` among the arguments requests; None if there is none.

    Other flags need not be right, so that a command with required flags can be asked without them.
    """
    if any(argument in _HELP_FLAGS for argument in arguments):
        return help_text(program, docstring, flag_values)
    if "--version" in arguments:
        return f"{program} {maxdl_tf.__version__}"
    if "config_file" in flag_values:
        if "--list_configs" in arguments:
            return list_of_configs()
        if "--list_fields" in arguments:
            return list_of_fields()
    return None


def help_text(program: str, docstring: str, flag_values: flags.FlagValues) -> str:
    """The docstring of a command and one paragraph for each flag, required flags first."""
    entries = []
    for name in sorted(set(flag_values) - {"flagfile", "undefok"}):
        flag = flag_values[name]
        choices = getattr(flag.parser, "enum_values", None)
        kind = "|".join(choices) if choices else flag.flag_type().upper().replace("MULTI ", "")
        title = f"--[no]{name}" if flag.boolean else f"--{name}={kind}"
        facts = []
        if is_required(flag):
            facts.append("required")
        elif flag.default not in (None, "", []):
            facts.append(f"default: {flag.default_as_str.strip(chr(39))}")
        if flag.flag_type().startswith("multi"):
            facts.append("may be repeated")
        # absl adds the choices and the repeatability to the text itself.
        text = re.sub(r"^<\S+>: |;\s+repeat this option to specify a list of values$", "", flag.help)
        text = " ".join(text.split()) + (f" ({', '.join(facts)})" if facts else "")
        entry = f"  {title}\n{textwrap.indent(textwrap.fill(text, _WIDTH - 8), ' ' * 8)}"
        entries.append((not is_required(flag), name, entry))
    body = inspect.cleandoc(docstring)
    flags_part = "\n\nFlags:\n" + "\n".join(entry for *_, entry in sorted(entries)) if entries else ""
    more = "--version prints the version."
    if "config_file" in flag_values:
        more += " --list_configs lists the packaged experiments, --list_fields the fields of an experiment."
    return f"{program}: {body}{flags_part}\n\n{more}"


def list_of_configs() -> str:
    """The names of the packaged experiments, each with the first sentence of its header."""
    paths = configs.experiments()
    width = max(map(len, paths))
    return "\n".join(f"{name:<{width}}  {_first_sentence(storage.read_text(path))}" for name, path in paths.items())


def list_of_fields() -> str:
    """The protos of an experiment: all fields with their meanings, units, defaults and bounds."""
    folder = os.path.join(os.path.dirname(maxdl_tf.__file__), "protos")
    return "\n".join(storage.read_text(os.path.join(folder, f"{name}.proto")) for name in _FIELD_FILES)


def _first_sentence(text: str) -> str:
    header = re.match(r"(?:#.*\n)*", text).group()
    paragraph = " ".join(line[1:].strip() for line in header.split("\n#\n")[0].splitlines())
    return re.match(r"(?:.+?\.(?=\s|$))|.*", paragraph).group()


def is_required(flag: flags.Flag) -> bool:
    return flag.default is None and any("other than None" in validator.message for validator in flag.validators)
