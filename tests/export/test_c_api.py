"""An export without Python: docs/examples/segment_image.c is built, and sees what Python sees."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.export.fold_batch_norm import fold_batch_norms
from maxdl_tf.export.saved_model import export_saved_model
from maxdl_tf.keras_api import keras
from tests.export.test_fold_batch_norm import _randomized
from tests.helpers import REPOSITORY
from tests.inference.color_network import BLUE, GRAY, INFO, RED, postprocessor, striped_image
from tests.models.test_kmax_deeplab import KMAX_SMALL
from tests.models.test_max_deeplab import _build

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


def _run(program, *arguments):
    """In an empty environment: no path on which a Python could be found."""
    return subprocess.run([str(program), *map(str, arguments)], env={}, capture_output=True, text=True, timeout=120)


def test_it_does_not_link_python(program):
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("needs ldd")
    libraries = subprocess.run([ldd, program], capture_output=True, text=True).stdout
    assert "libtensorflow_cc" in libraries and "python" not in libraries.replace(str(tf.sysconfig.get_lib()), "")


def assert_it_sees_what_python_sees(program, export_dir, path, folder) -> int:
    """Compares the map and the table of an image file; returns the number of segments."""
    done = _run(program, export_dir, path, folder / "map.ppm")
    assert done.returncode == 0, done.stderr
    signature = tf.saved_model.load(str(export_dir)).signatures["serving_default"]
    outputs = {
        name: value[0].numpy() for name, value in signature(image_bytes=tf.constant([path.read_bytes()])).items()
    }
    ids = panoptic_ids.color_to_id(np.asarray(Image.open(folder / "map.ppm")))
    np.testing.assert_array_equal(ids, outputs["panoptic_map"])
    table = np.array([line.split() for line in done.stdout.splitlines()], float)
    assert len(table) == outputs["num_segments"]
    names = ("segment_ids", "segment_class_ids", "segment_scores", "segment_areas")
    wanted = np.column_stack([*(outputs[name] for name in names), outputs["segment_boxes"]])[: len(table)]
    np.testing.assert_allclose(table, wanted, atol=1e-6)
    return len(table)


@pytest.mark.parametrize(
    "suffix, size, colors", [("png", (97, 129), (RED, GRAY, BLUE)), ("jpg", (64, 200), (BLUE, RED))]
)
def test_it_sees_what_python_sees(program, color_export, tmp_path, suffix, size, colors):
    image, _ = striped_image(*size, colors=colors)
    path = tmp_path / f"image.{suffix}"
    path.write_bytes((tf.io.encode_png if suffix == "png" else tf.io.encode_jpeg)(image).numpy())
    assert assert_it_sees_what_python_sees(program, color_export, path, tmp_path) == 2


@pytest.mark.parametrize(
    "content, message", [(b"no image", "image 0 of the batch is not a JPEG or PNG"), (None, "cannot be read")]
)
def test_a_bad_image_ends_it(program, color_export, tmp_path, content, message):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    done = _run(program, color_export, path)
    assert done.returncode == 1 and done.stdout == ""
    assert f"segment_image: {path}: " in done.stderr and message in done.stderr


def test_a_bad_model_ends_it(program, tmp_path):
    (tmp_path / "image.jpg").write_bytes(b"")
    done = _run(program, tmp_path, tmp_path / "image.jpg")
    assert done.returncode == 1 and f"segment_image: {tmp_path}: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["float32", "unfolded", "float16", "bfloat16"])
def test_it_runs_a_kmax_deeplab(program, tmp_path, weights):
    """Exported with verification, by all routes."""
    keras.utils.set_random_seed(0)
    variant = replace(KMAX_SMALL, transformer_decoder_blocks=(0, 1, 1), semantic_branch=False)
    model = _randomized(_build(variant, num_classes=2))
    model.predictor.class_head.logits.bias.assign([9.0, 9.0, 0.0])
    model.predictor.mask_head.batch_norm.gamma.assign([9.0])  # Clear masks.
    limits = {"class_threshold": 0.0, "pixel_threshold": 1 / 3, "overlap_threshold": 0.0}
    report = export_saved_model(
        model,
        postprocessor(**limits),
        crop_size=(65, 65),
        dataset_info=INFO,
        export_dir=str(tmp_path / "export"),
        origin={},
        inference_model=None if weights == "unfolded" else fold_batch_norms(model, tf.dtypes.as_dtype(weights)),
        images={"one": tf.io.encode_png(striped_image(65, 65)[0]).numpy()},
        min_agreement=0.9 if weights.endswith("16") else 1.0,
    )
    assert report.agreement.segments > 0
    path = tmp_path / "image.png"
    path.write_bytes(tf.io.encode_png(striped_image(50, 80)[0]).numpy())
    assert assert_it_sees_what_python_sees(program, report.path, path, tmp_path) > 0
