"""What all commands share: parsing of flags, --help, errors in one line, a quiet start of TensorFlow.

A command is a module. Its docstring describes it and ends with an example:

    from absl import flags

    from maxdl_tf import command_flags, command_line

    FLAGS = flags.FlagValues()
    _CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "training { steps: 100 }")

    def main(argv):
        from maxdl_tf import config

        experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)  # May raise UserError.
        with command_line.quiet_imports():
            from maxdl_tf.tasks import run
        ...

    def run():
        command_line.run(main, FLAGS)

    if __name__ == "__main__":
        run()

Each command has its own `FlagValues`, so that several can define `--config_file` and be imported into one process.
TensorFlow is imported inside `main`, so that `--help` and errors in flags appear at once.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from maxdl_tf import command_help, terminal
from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space

_START_UP_NOISE = re.compile(
    r"Unable to register cu\w+ factory|computation placer already registered|Could not find (cuda drivers|TensorRT)"
    r"|All log messages before absl::InitializeLog"
    # Of a TensorFlow with CUDA on a machine without a driver, or without a GPU. Other errors of cuInit are faults.
    r"|failed call to cuInit: .*(UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE)"
)
_CONVERSIONS = {
    r"invalid literal for int\(\).*": "must be a whole number",
    r"could not convert string to float.*": "must be a number",
    r"\('Non-boolean argument to boolean flag'.*": "must be true or false",
}
_MAY_BE_EMPTY = ("override",)  # No fragment. Other text is a path or a name.


def run(
    main: Callable[[list[str]], int | None],
    flag_values: flags.FlagValues,
    argv: Sequence[str] | None = None,
    max_positional: int = 0,
) -> None:
    """Parses the flags, calls `main` with the remaining arguments, and ends the process.

    Exit status: the value that `main` returns (None is 0); 2 after a `UserError`, a bad flag or a full disk, reported
    in one line on stderr; 130 after Ctrl-C; 141 if the reader of the output is gone, as with `| head`. Other exceptions
    are bugs and keep their traceback.

    Args:
      main: Takes `[program, *positional arguments]`, as with `absl.app.run`.
      flag_values: Flags of the command.
      argv: Arguments in place of `sys.argv`.
      max_positional: Largest number of positional arguments.
    """
    _remove_script_folder()
    argv = list(sys.argv if argv is None else argv)
    program = os.path.basename(argv[0])
    text = command_help.requested_text(program, argv[1:], inspect.getmodule(main).__doc__ or "", flag_values)
    with terminal.visible_output():
        try:
            try:
                if text is not None:
                    print(text)
                    sys.exit(0)
                _silence_tensorflow()
                app.run(main, argv, flags_parser=lambda args: _parse(args, flag_values, max_positional))
            finally:
                if sys.stdout:
                    sys.stdout.flush()  # Where errors are handled. Python's own end would only complain.
        except KeyboardInterrupt:
            print(f"\n{program}: interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            message = str(error) if isinstance(error, UserError) else disk_space.full_disk(error)
            if message is None:
                raise
            print(f"{program}: {' '.join(line.strip() for line in message.splitlines())}", file=sys.stderr)
            sys.exit(2)


def run_one_of(
    commands: Mapping[str, Any],
    main: Callable[[list[str]], int | None],
    argv: Sequence[str] | None = None,
) -> None:
    """`run` for a program whose first argument names one of several commands, each with its own flags.

    Args:
      commands: Modules by name, each with `main` and `FLAGS`.
      main: Called if the first argument is not one of the names. The docstring of its module is the program's help.
      argv: Arguments in place of `sys.argv`.
    """
    argv = list(sys.argv if argv is None else argv)
    command = commands.get(argv[1]) if len(argv) > 1 else None
    if command:
        run(command.main, command.FLAGS, [f"{argv[0]} {argv[1]}", *argv[2:]])
    else:
        # The flags are those of a command that is missing or misspelled, so only --help and its like have a meaning.
        names = [word for word in argv[1:2] if not word.startswith("-")]
        requests = [word for word in argv[1:] if word in command_help.FLAGS]
        run(main, flags.FlagValues(), [argv[0], *names, *requests], max_positional=1)


def choose_one_of(commands: Mapping[str, Any], argv: Sequence[str], got: str) -> UserError:
    """The error to raise if the first argument names no command; `got` describes that argument."""
    program = os.path.basename(argv[0])
    close = difflib.get_close_matches(argv[1], commands, n=1) if len(argv) > 1 else []
    choices = " or ".join(f"{program} {name}" for name in close or commands)
    return UserError(f"{got}; run {choices}, or {program} --help")


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of these kinds (default: ValueError and OSError) into `UserError`.

    Use it only around code that reads and checks the user's input. Elsewhere such an exception is a bug, and its
    traceback is needed.
    """
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except (UserError, BrokenPipeError):  # The latter is the end of the output's reader; see `run`.
        raise
    except kinds as error:
        message = disk_space.full_disk(error)
        if message is None and isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        raise UserError(message or str(error)) from error


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hides the lines that TensorFlow's libraries are known to write whenever they are imported and look for devices.

    All other output to stderr appears at the end. Everything appears if the import fails, or if the user asked for
    TensorFlow's messages with TF_CPP_MIN_LOG_LEVEL=0 or 1.

    The lines are of level "error" and come from C++. Of TensorFlow's own switches only TF_CPP_MIN_LOG_LEVEL=3 hides
    them; TensorFlow reads it once for the process, so it would hide real errors as well. Only redirecting file
    descriptor 2 separates the two.
    """
    if not _silence_tensorflow():
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        succeeded = False
        try:
            yield
            if sys.modules.get("tensorflow"):
                sys.modules["tensorflow"].config.list_physical_devices()  # Which the first operation would do.
            succeeded = True
        except (KeyboardInterrupt, UserError):
            succeeded = True  # No import failed.
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not (succeeded and _START_UP_NOISE.search(line)):
                    print(line, file=sys.stderr)


def _remove_script_folder() -> None:
    """Removes maxdl_tf/ from the import path, where `python maxdl_tf/trainer.py` puts it.

    Its `data`, `files` and `export` would otherwise shadow top-level modules of other packages.
    """
    if sys.path and os.path.abspath(sys.path[0]) == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]


def _parse(argv: list[str], flag_values: flags.FlagValues, max_positional: int) -> list[str]:
    """Parses absl's own flags (--verbosity, --pdb, ...), then the command's."""
    help_hint = f"see {os.path.basename(argv[0])} --help"
    try:
        rest = flag_values(flags.FLAGS(argv, known_only=True))
    except flags.Error as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        text = f"--{missing.group(1)} is missing" if missing else _plain_flag_error(str(error))
        raise UserError(f"{text}; {help_hint}") from None
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING
    _check_not_empty(flag_values, rest[1:], help_hint)
    for name in flag_values:  # The bounds of absl let nan through.
        value = flag_values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} must be a finite number; {help_hint}")
    unexpected = rest[1 + max_positional :]
    if unexpected:
        raise UserError(f"unexpected argument {unexpected[0]!r}; {help_hint}")
    return rest


def _plain_flag_error(text: str) -> str:
    """An error of absl without the words of Python's conversions."""
    for words, plain in _CONVERSIONS.items():
        text = re.sub(words, plain, text)
    return text.rstrip(".")


def _check_not_empty(flag_values: flags.FlagValues, positional: Sequence[str], help_hint: str) -> None:
    """Raises UserError if a text is empty, mostly from an unset variable: an empty path can stand for any folder."""
    given = {"an argument": list(positional)}
    for name in flag_values:
        flag = flag_values[name]
        is_text = flag.flag_type() in ("string", "multi string") and flag.default != ""
        if is_text and flag.present and name not in _MAY_BE_EMPTY:
            given[f"--{name}"] = flag.value if isinstance(flag.value, list) else [flag.value]
    for name, texts in given.items():
        if not all(text.strip() for text in texts):
            raise UserError(f"{name} is empty, perhaps from an unset variable; give a value or drop it; {help_hint}")


def _silence_tensorflow() -> bool:
    """Hides messages of TensorFlow's libraries below errors. Returns False if the user asked for them."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") in ("0", "1"):
        return False
    warnings.filterwarnings("ignore", category=UserWarning, module=r"tensorflow_addons\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")
    return True
