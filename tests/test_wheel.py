"""The wheel: what is in it, and that the Python face and the commands run from it, away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.test_import_floors import MODULES

pytestmark = pytest.mark.slow

EXPERIMENT = "shapes/max_deeplab_tiny_81"  # The packaged one: there is no configs/ beside the installed commands.
SMALL = (
    "model { width { multiplier: 0.5 stem_multiplier: 0.5 } postprocess { class_threshold: 0 pixel_threshold: 0 } } "
    "train_dataset { crop_size: 33 batch_size: 2 } eval_dataset { crop_size: 33 batch_size: 2 } "
    "training { steps: 2 optimizer { warmup_steps: 1 } }"
)
FACE = """
import sys
import maxdl_tf
assert not {"tensorflow", "numpy", "google.protobuf"} & set(sys.modules)
assert maxdl_tf.__file__.startswith(sys.argv[1]), maxdl_tf.__file__
model = maxdl_tf.build_model(maxdl_tf.load_experiment("shapes/max_deeplab_tiny_81"))
print(model.count_params(), "parameters")
for path in ("run", "export"):
    result = maxdl_tf.load_predictor(path)("images/shapes_val_000000.jpg")
    print(path, result.label_map.shape, result.overlay().size)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: what earlier builds left in the checkout would otherwise be in it, too."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "*_pb2.py")
    shutil.copytree(REPOSITORY, folder / "source", ignore=ignored)
    _python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs an installed command, or Python, in a folder that was empty at first; returns what it prints."""
    site = tmp_path_factory.mktemp("site")
    _python("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    work = tmp_path_factory.mktemp("work")
    environment = {**os.environ, "PYTHONPATH": str(site), "SHAPES_TFRECORDS": "shapes", "TF_CPP_MIN_LOG_LEVEL": "2"}

    def run(program: str, *arguments) -> str:
        if program == "python":
            return _python(*arguments, site, cwd=work, env=environment)
        return _python(site / "bin" / program, *arguments, cwd=work, env=environment)

    return run


def _python(*arguments, **options) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False, **options
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_wheel_has_everything(wheel):
    """Generated protos, their sources and configs are in it, and no generic top-level name."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {"/".join(module.split(".")) for module in MODULES}
    assert {name.removesuffix(".py").removesuffix("/__init__") for name in names if name.endswith(".py")} == expected
    configs = {f"maxdl_tf/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.textproto")}
    protos = {f"maxdl_tf/protos/{path.name}" for path in (REPOSITORY / "protos").glob("*.proto")}
    assert {name for name in names if not name.endswith(".py")} == configs | protos


def test_an_installed_wheel_runs_every_command_and_the_python_face(run):
    experiment = ("--config_file", EXPERIMENT, "--override", SMALL)
    draw = ("shapes", "--height=33", "--width=33", "--output_dir=shapes")
    run("maxdl-convert", *draw, "--split=train", "--count=4")
    run("maxdl-convert", *draw, "--split=val", "--count=2", "--image_dir=images")
    assert "2 images: 0 errors" in run("maxdl-check-data", "tfrecords", "--file_pattern=shapes/val-*.tfrecord")
    run("maxdl-train", *experiment, "--mode=train", "--model_dir=run")
    assert re.search(r"^all ", run("maxdl-eval", "--checkpoint=run"), re.MULTILINE)
    run("maxdl-export", "--checkpoint=run", "--export_dir=export")
    assert "predicted 2 of 2 images" in run("maxdl-predict", "--model=export", "--input=images", "--output=predicted")
    assert "parameters" in run("maxdl-benchmark", "--mode=count", *experiment)
    for command in ("maxdl-import-checkpoint", "maxdl-serving-client"):  # They need DeepLab2's files, or a server.
        assert run(command, "--help").startswith(f"{command}: ")

    assert f"{EXPERIMENT} " in run("maxdl-train", "--list_configs")
    assert "optional float learning_rate = " in run("maxdl-train", "--list_fields")
    assert run("maxdl-check-data", "--version").startswith("maxdl-check-data ")

    lines = run("python", "-c", FACE).splitlines()
    assert lines[-2:] == ["run (33, 33) (33, 33)", "export (33, 33) (33, 33)"]
