"""How every command starts and fails: exit status, what is on stderr, and that flags arrive."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import types

import pytest
from absl import flags
from absl.testing import flagsaver

import maxdl_tf
from maxdl_tf import check_data, command_help, command_line, config
from maxdl_tf.data_gen import convert
from maxdl_tf.errors import UserError
from maxdl_tf.protos import experiment_pb2
from tests import helpers

PROGRAM = "/usr/bin/maxdl-fake"


@pytest.fixture
def flag_values():
    values = flags.FlagValues()
    flags.DEFINE_string("config_file", None, "Experiment textproto.", required=True, flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.", flag_values=values)
    flags.DEFINE_multi_string("override", [], "Textproto fragment.", flag_values=values)
    flags.DEFINE_boolean("mixed_precision", False, "Compute in bfloat16.", flag_values=values)
    flags.DEFINE_integer("tile", 0, "Side of a tile.", flag_values=values)
    flags.DEFINE_float("score", 0.0, "Score.", lower_bound=0.0, flag_values=values)
    return values


def _run(main, flag_values, *arguments, **options) -> int:
    with pytest.raises(SystemExit) as stopped:
        command_line.run(main, flag_values, [PROGRAM, *arguments], **options)
    return stopped.value.code or 0


def test_flags_and_positional_arguments_arrive(flag_values):
    seen = []

    def main(argv):
        seen.append((argv, flag_values.config_file, flag_values.mode, flag_values.override))
        return 3

    arguments = ["--config_file=a", "images", "--override", "x", "--override", "y", "--mode=eval"]
    assert _run(main, flag_values, *arguments, max_positional=1) == 3
    assert seen == [([PROGRAM, "images"], "a", "eval", ["x", "y"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config_file is missing"),
        (["--config_file"], "--config_file"),
        (["--config_file=a", "--mode=fly"], "--mode=fly: value should be one of <train|eval>"),
        (["--confg_file=a"], "Unknown command line flag 'confg_file'. Did you mean: config_file"),
        (["--config_file=a", "stray"], "unexpected argument 'stray'"),
        (["--config_file=a", "--tile=1.5"], "--tile=1.5: must be a whole number"),
        (["--config_file=a", "--score=high"], "--score=high: must be a number"),
        (["--config_file=a", "--mixed_precision=yes"], "--mixed_precision=yes: must be true or false"),
    ],
)
def test_bad_flags_are_told_in_one_line(flag_values, capsys, arguments, message):
    assert _run(lambda argv: pytest.fail("main was called"), flag_values, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("maxdl-fake: ") and output.err.count("\n") == 1
    assert message in output.err and "see maxdl-fake --help" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label_png", "--image_dir=a"], "'label_png' is not a converter; run maxdl-convert label_pngs, or"),
        (["--image_dir=a"], "the name of a converter is missing; run maxdl-convert coco_panoptic or"),
    ],
)
def test_the_name_of_a_converter_is_checked_before_its_flags(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        convert.run(["/usr/bin/maxdl-convert", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"maxdl-convert: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_refused(flag_values, capsys, value):
    assert _run(lambda argv: pytest.fail("main was called"), flag_values, "--config_file=a", f"--score={value}") == 2
    assert f"--score={value} must be a finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [
        (["--config_file="], "--config_file"),
        (["--config_file", " "], "--config_file"),
        (["--config_file=a", "--input=b", "--input="], "--input"),
        (["--config_file=a", "b", ""], "an argument"),
    ],
)
def test_an_empty_path_is_refused(flag_values, capsys, arguments, empty):
    flags.DEFINE_multi_string("input", [], "Paths.", flag_values=flag_values)
    assert _run(lambda argv: pytest.fail("main was called"), flag_values, *arguments, max_positional=2) == 2
    assert f"{empty} is empty, perhaps from an unset variable" in capsys.readouterr().err


def test_text_that_may_be_empty(flag_values):
    flags.DEFINE_string("ending", "", "Part of names.", flag_values=flag_values)
    flags.DEFINE_list("values", ["0"], "Numbers.", flag_values=flag_values)
    seen = []
    _run(lambda argv: seen.append(1), flag_values, "--config_file=a", "--override=", "--ending=", "--values=")
    assert seen == [1] and flag_values.values == []


def test_no_command_takes_an_empty_path():
    commands = [importlib.import_module(name) for name in helpers.SCRIPTS.values()]
    commands = [module for module in commands if hasattr(module, "FLAGS")]
    commands += [*convert.CONVERTERS.values(), *check_data.CHECKS.values()]
    refused = set()
    for module in commands:
        values = module.FLAGS
        flags_ = [values[name] for name in values]
        required = [flag for flag in flags_ if command_help.is_required(flag)]
        given = [f"--{flag.name}={getattr(flag.parser, 'enum_values', ['x'])[0]}" for flag in required]
        for flag in flags_:
            if flag.flag_type() in ("string", "multi string") and flag.name not in ("override", "label_ending"):
                saved = flagsaver.save_flag_values(values)
                with pytest.raises(UserError, match=f"--{flag.name} is empty"):
                    command_line._parse(["maxdl", *given, f"--{flag.name}="], values, 0)
                flagsaver.restore_flag_values(saved, values)
                refused.add(flag.name)
    assert {"output_dir", "model_dir", "export_dir", "checkpoint", "input", "json", "html", "class_folders"} <= refused


def test_a_user_error_is_one_line_and_status_2(flag_values, capsys):
    def main(argv):
        raise UserError("crop_size 640:\n  wanted 16k+1; try 641")

    assert _run(main, flag_values, "--config_file=a") == 2
    assert capsys.readouterr().err == "maxdl-fake: crop_size 640: wanted 16k+1; try 641\n"


def test_a_fault_of_the_program_keeps_its_traceback(flag_values):
    def main(argv):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        command_line.run(main, flag_values, [PROGRAM, "--config_file=a"])


def test_ctrl_c_ends_without_traceback(flag_values, capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert _run(main, flag_values, "--config_file=a") == 130
    assert capsys.readouterr().err == "\nmaxdl-fake: interrupted\n"


def test_user_errors_names_the_file(tmp_path):
    missing = tmp_path / "missing.json"
    with pytest.raises(UserError, match=r"missing\.json: No such file or directory$"), command_line.user_errors():
        missing.open()
    with pytest.raises(KeyError), command_line.user_errors():
        raise KeyError("a fault of the program")
    with pytest.raises(UserError, match="'k'"), command_line.user_errors(KeyError):
        raise KeyError("k")


def test_help_has_docstring_and_flags(flag_values, capsys, monkeypatch):
    module = types.ModuleType("fake_command", "Does it.\n\nExample:\n  maxdl-fake --config_file x\n")
    exec("def main(argv): raise AssertionError", module.__dict__)
    monkeypatch.setitem(sys.modules, "fake_command", module)
    assert _run(module.main, flag_values, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["maxdl-fake: Does it.", "", "Example:", "  maxdl-fake --config_file x"]
    flag_lines = [line for line in lines if line.startswith("  --")]
    assert flag_lines == [
        "  --config_file=STRING",
        "  --[no]mixed_precision",
        "  --mode=train|eval",
        "  --override=STRING",
        "  --score=FLOAT",
        "  --tile=INT",
    ]
    text_of = dict(zip(lines, (line.strip() for line in lines[1:])))
    assert text_of["  --config_file=STRING"] == "Experiment textproto. (required)"
    assert text_of["  --mode=train|eval"] == "What to do. (default: train)"
    assert text_of["  --override=STRING"] == "Textproto fragment. (may be repeated)"


def test_version_and_lists_need_no_other_flag(flag_values, capsys):
    def printed(*arguments):
        assert _run(lambda argv: pytest.fail("main was called"), flag_values, *arguments) == 0
        return capsys.readouterr().out

    assert printed("--version") == f"maxdl-fake {maxdl_tf.__version__}\n"
    configs = dict(line.split(maxsplit=1) for line in printed("--list_configs").splitlines())
    assert configs["shapes/max_deeplab_tiny_81"] == (
        "A small MaX-DeepLab on drawn shapes: the experiment of `make demo`."
    )
    assert len(configs) > 40 and not [name for name in configs if name.startswith("datasets/")]
    for name in configs:
        assert config.load_experiment(name).name
    fields = printed("--list_fields")
    messages = [experiment_pb2.Experiment.DESCRIPTOR]
    for message in messages:
        messages += [field.message_type for field in message.fields if field.message_type not in (None, *messages)]
        assert f"message {message.name} {{" in fields
        assert [field.name for field in message.fields if not re.search(rf" {field.name} = \d+", fields)] == []


def test_a_program_of_several_commands_has_a_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        convert.run(["/usr/bin/maxdl-convert", "--version"])
    assert not stopped.value.code and capsys.readouterr().out == f"maxdl-convert {maxdl_tf.__version__}\n"


_PRINTING = """
import sys
from absl import flags
from maxdl_tf import command_line

def main(argv):
    for number in range(int(argv[1])):
        print(number, file=getattr(sys, argv[2]))

sys.argv[0] = "maxdl-fake"
command_line.run(main, flags.FlagValues(), max_positional=2)
"""


@pytest.mark.parametrize(
    "lines, stream, unbuffered",
    [(10, "stdout", ""), (10, "stdout", "1"), (100_000, "stdout", ""), (10, "stderr", "")],
)
def test_the_end_of_the_reader_is_a_silent_end(lines, stream, unbuffered):
    """As in `maxdl-eval ... | head`. Few lines stay in Python's buffer until the end."""
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    options = {stream: writer, other: subprocess.PIPE, "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}}
    done = subprocess.run([sys.executable, "-c", _PRINTING, str(lines), stream], text=True, check=False, **options)
    os.close(writer)
    assert (done.returncode, getattr(done, other)) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_under_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", _PRINTING, "10", "stdout"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("maxdl-fake: cannot write") and done.stderr.count("\n") == 1


def test_an_oserror_of_something_else_is_a_fault_of_the_program(flag_values):
    def main(argv):
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        command_line.run(main, flag_values, [PROGRAM, "--config_file=a"])


NOISE = b"2026 E cuda_dnn.cc:9261] Unable to register cuDNN factory: Attempting to register\n"


def test_quiet_imports_hold_back_known_noise_only(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    with command_line.quiet_imports():
        os.write(2, NOISE + b"something new\n")
    assert capfd.readouterr().err == "something new\n"


def test_devices_are_looked_for_where_the_noise_is_hidden(capfd, monkeypatch):
    """A machine without a driver is no error. One whose driver does not work has to be reported."""
    said = [
        b"E cuda.cc:51] failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)\n",
        b"E cuda.cc:274] failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected\n",
        b"E cuda.cc:274] failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: unequal versions\n",
    ]
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    looks = types.SimpleNamespace(list_physical_devices=lambda: os.write(2, b"".join(said)))
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=looks))
    with command_line.quiet_imports():
        pass
    assert capfd.readouterr().err == said[2].decode()


def test_a_failed_import_shows_all(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    with pytest.raises(ImportError), command_line.quiet_imports():
        os.write(2, NOISE)
        raise ImportError
    assert capfd.readouterr().err == NOISE.decode()


def test_an_interrupted_import_shows_no_noise(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    with pytest.raises(KeyboardInterrupt), command_line.quiet_imports():
        os.write(2, NOISE)
        raise KeyboardInterrupt
    assert capfd.readouterr().err == ""


def test_all_is_shown_to_whom_asks(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with command_line.quiet_imports():
        os.write(2, NOISE)
    assert capfd.readouterr().err == NOISE.decode()
