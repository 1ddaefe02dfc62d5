"""An export without Python: docs/examples/segment_image.c is built, and sees what Python sees."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import panoptic_ids
from tests.export.color_export import save_color_model
from tests.helpers import REPOSITORY
from tests.inference.color_network import BLUE, GRAY, RED, striped_image

SOURCE = REPOSITORY / "docs" / "examples" / "segment_image.c"
LIBRARIES = [Path(tf.sysconfig.get_lib()) / f"libtensorflow_{name}.so.2" for name in ("cc", "framework")]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    absent = [library.name for library in LIBRARIES if not library.exists()]
    if absent:
        pytest.skip(f"needs {absent[0]}, which this TensorFlow does not bring")
    binary = tmp_path_factory.mktemp("c") / "segment_image"
    options = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-I", tf.sysconfig.get_include()]
    command = [compiler, *options, SOURCE, "-o", binary, *LIBRARIES, f"-Wl,-rpath,{tf.sysconfig.get_lib()}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return binary


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    return save_color_model(tmp_path_factory.mktemp("exports") / "1")


def _run(program, *arguments):
    """In an empty environment: no path on which a Python could be found."""
    return subprocess.run([str(program), *map(str, arguments)], env={}, capture_output=True, text=True, timeout=120)


def test_it_does_not_link_python(program):
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("needs ldd")
    libraries = subprocess.run([ldd, program], capture_output=True, text=True).stdout
    assert "libtensorflow_cc" in libraries and "python" not in libraries.replace(str(tf.sysconfig.get_lib()), "")


@pytest.mark.parametrize(
    "suffix, size, colors", [("png", (97, 129), (RED, GRAY, BLUE)), ("jpg", (64, 200), (BLUE, RED))]
)
def test_it_sees_what_python_sees(program, export_dir, tmp_path, suffix, size, colors):
    image, _ = striped_image(*size, colors=colors)
    encoded = (tf.io.encode_png if suffix == "png" else tf.io.encode_jpeg)(image).numpy()
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(encoded)
    done = _run(program, export_dir, path, tmp_path / "map.ppm")
    assert done.returncode == 0, done.stderr

    outputs = tf.saved_model.load(str(export_dir)).signatures["serving_default"](image_bytes=tf.constant([encoded]))
    outputs = {name: value[0].numpy() for name, value in outputs.items()}
    ids = panoptic_ids.color_to_id(np.asarray(Image.open(tmp_path / "map.ppm")))
    np.testing.assert_array_equal(ids, outputs["panoptic_map"])
    table = np.array([line.split() for line in done.stdout.splitlines()], float)
    assert len(table) == outputs["num_segments"] == 2
    names = ("segment_ids", "segment_class_ids", "segment_scores", "segment_areas")
    wanted = np.column_stack([*(outputs[name] for name in names), outputs["segment_boxes"]])[: len(table)]
    np.testing.assert_allclose(table, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "content, message", [(b"no image", "image 0 of the batch is not a JPEG or PNG"), (None, "cannot be read")]
)
def test_a_bad_image_ends_it(program, export_dir, tmp_path, content, message):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    done = _run(program, export_dir, path)
    assert done.returncode == 1 and done.stdout == ""
    assert f"segment_image: {path}: " in done.stderr and message in done.stderr


def test_a_bad_model_ends_it(program, tmp_path):
    (tmp_path / "image.jpg").write_bytes(b"")
    done = _run(program, tmp_path, tmp_path / "image.jpg")
    assert done.returncode == 1 and f"segment_image: {tmp_path}: " in done.stderr
