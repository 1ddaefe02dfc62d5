"""What all commands share: flags, --help, errors in one line, a quiet start of TensorFlow.

A command is a module whose docstring says what it does and ends with an example:

    from absl import flags

    from maxdl_tf import command_line

    FLAGS = flags.FlagValues()
    _CONFIG_FILE = flags.DEFINE_string("config_file", None, "Experiment textproto.", required=True, flag_values=FLAGS)

    def main(argv):
        config = load_config(_CONFIG_FILE.value)  # may raise UserError; nothing heavy has been imported yet
        with command_line.quiet_imports():
            from maxdl_tf.tasks import run
        ...

    def run():
        command_line.run(main, FLAGS)

    if __name__ == "__main__":
        run()

Each command has its own `FlagValues`, so that two of them can define `--config_file` and still be imported into one
process. TensorFlow is imported inside `main`, so that `--help` and errors in flags come at once.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from maxdl_tf.errors import UserError

# `python maxdl_tf/trainer.py` puts the folder maxdl_tf/ first on the path, where `data`, `metrics` and `export` would
# shadow other packages' top-level modules of those names.
if sys.path and os.path.abspath(sys.path[0]) == os.path.dirname(os.path.abspath(__file__)):
    del sys.path[0]

_HELP_FLAGS = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull")
_START_UP_NOISE = re.compile(
    r"Unable to register cu\w+ factory|computation placer already registered|Could not find (cuda drivers|TensorRT)"
    r"|All log messages before absl::InitializeLog"
)
_WIDTH = 100


def run(
    main: Callable[[list[str]], int | None],
    flag_values: flags.FlagValues,
    argv: Sequence[str] | None = None,
    max_positional: int = 0,
) -> None:
    """Parses the flags, calls `main` with what is left, and ends the process.

    Exit status: what `main` returns (None is 0); 2 after a `UserError` or a bad flag, told in one line on stderr; 130
    after Ctrl-C. Other exceptions are faults of the program and keep their traceback.

    Args:
      main: Takes `[program, *positional arguments]`, as with `absl.app.run`.
      flag_values: The command's own flags.
      argv: Instead of `sys.argv`.
      max_positional: How many positional arguments the command takes at most.
    """
    argv = list(sys.argv if argv is None else argv)
    program = _program_name(argv[0])
    if any(argument in _HELP_FLAGS for argument in argv[1:]):
        _print_help(help_text(program, inspect.getmodule(main).__doc__ or "", flag_values))
        sys.exit(0)
    _hush_start_up()
    try:
        app.run(main, argv, flags_parser=lambda args: _parse(args, flag_values, max_positional))
    except UserError as error:
        message = " ".join(line.strip() for line in str(error).splitlines())
        print(f"{program}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def run_one_of(
    commands: Mapping[str, Any],
    main: Callable[[list[str]], int | None],
    argv: Sequence[str] | None = None,
) -> None:
    """`run` for a program whose first argument names one of several commands, each with flags of its own.

    Args:
      commands: Modules by that name, each with `main` and `FLAGS`.
      main: Called where it names none; its module's docstring is the program's help.
      argv: Instead of `sys.argv`.
    """
    argv = list(sys.argv if argv is None else argv)
    command = commands.get(argv[1]) if len(argv) > 1 else None
    if command:
        run(command.main, command.FLAGS, [f"{argv[0]} {argv[1]}", *argv[2:]])
    else:
        run(main, flags.FlagValues(), argv, max_positional=len(argv))


def choose_one_of(commands: Mapping[str, Any], argv: Sequence[str], got: str) -> UserError:
    """What to raise where the first argument names no command; `got` is what it was instead."""
    program = os.path.basename(argv[0])
    choices = " or ".join(f"{program} {name}" for name in commands)
    return UserError(f"{got}; say {choices}, or {program} --help")


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of these kinds (ValueError and OSError if none is named) into `UserError`.

    For the part of a command that reads and checks what the user gave, and for no other: in later parts such an
    exception is a fault of the program, and its traceback is needed.
    """
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(f"{error.filename}: {error.strerror}") from error
        raise UserError(str(error)) from error


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Holds back the lines that TensorFlow's libraries are known to write whenever they are imported.

    All else that is written to stderr meanwhile comes out at the end; everything does, if the import fails or if
    the user asked for TensorFlow's messages with TF_CPP_MIN_LOG_LEVEL=0 or 1.
    """
    if not _hush_start_up():
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not (succeeded and _START_UP_NOISE.search(line)):
                    print(line, file=sys.stderr)


def help_text(program: str, docstring: str, flag_values: flags.FlagValues) -> str:
    """The docstring of a command and its flags, one paragraph each: the required ones first."""
    entries = []
    for name in sorted(set(flag_values) - {"flagfile", "undefok"}):
        flag = flag_values[name]
        choices = getattr(flag.parser, "enum_values", None)
        kind = "|".join(choices) if choices else flag.flag_type().upper().replace("MULTI ", "")
        title = f"--[no]{name}" if flag.boolean else f"--{name}={kind}"
        facts = []
        if _is_required(flag):
            facts.append("required")
        elif flag.default not in (None, "", []):
            facts.append(f"default: {flag.default_as_str.strip(chr(39))}")
        if flag.flag_type().startswith("multi"):
            facts.append("may be repeated")
        # absl adds the choices and the repeatability to the text itself.
        text = re.sub(r"^<\S+>: |;\s+repeat this option to specify a list of values$", "", flag.help)
        text = " ".join(text.split()) + (f" ({', '.join(facts)})" if facts else "")
        entry = f"  {title}\n{textwrap.indent(textwrap.fill(text, _WIDTH - 8), ' ' * 8)}"
        entries.append((not _is_required(flag), name, entry))
    body = inspect.cleandoc(docstring)
    flags_part = "\n\nFlags:\n" + "\n".join(entry for *_, entry in sorted(entries)) if entries else ""
    return f"{program}: {body}{flags_part}"


def _print_help(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # A pager that was left, or `head`; without this Python complains again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _program_name(path: str) -> str:
    return os.path.basename(path)


def _is_required(flag: flags.Flag) -> bool:
    return flag.default is None and any("other than None" in validator.message for validator in flag.validators)


def _parse(argv: list[str], flag_values: flags.FlagValues, max_positional: int) -> list[str]:
    """Parses absl's own flags (--verbosity, --pdb, ...), then the command's."""
    help_hint = f"see {_program_name(argv[0])} --help"
    try:
        rest = flag_values(flags.FLAGS(argv, known_only=True))
    except flags.Error as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        text = f"--{missing.group(1)} is missing" if missing else str(error).rstrip(".")
        raise UserError(f"{text}; {help_hint}") from None
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING
    unexpected = rest[1 + max_positional :]
    if unexpected:
        raise UserError(f"unexpected argument {unexpected[0]!r}; {help_hint}")
    return rest


def _hush_start_up() -> bool:
    """Hides what TensorFlow's libraries write below errors; False, and nothing is hidden, if the user asked for it."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") in ("0", "1"):
        return False
    warnings.filterwarnings("ignore", category=UserWarning, module=r"tensorflow_addons\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")
    return True
