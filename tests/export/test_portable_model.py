"""Exports that run without TensorFlow: what is in them, what they predict, and what is not kept."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import maxdl_tf
from maxdl_tf import class_table
from maxdl_tf.benchmarks import machine, measure
from maxdl_tf.errors import UserError
from maxdl_tf.export import portable_model
from maxdl_tf.export.portable_model import FORMATS, export_portable_model
from maxdl_tf.inference import numpy_pipeline
from maxdl_tf.inference.predictor import Predictor
from tests.examples import code_blocks
from tests.helpers import REPOSITORY
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor, striped_image
from tests.inference.test_predictor import SIZES


def needs_runtime(file_format):
    for package in FORMATS[file_format].packages:
        pytest.importorskip(package, exc_type=ImportError)


def _png(*size):
    return tf.io.encode_png(striped_image(*size)[0]).numpy()


def _export(export_dir, file_format, **kwargs):
    return export_portable_model(
        kwargs.pop("model", None) or ColorNetwork(),
        kwargs.pop("read", None) or postprocessor(),
        file_format=file_format,
        crop_size=CROP_SIZE,
        dataset_info=INFO,
        export_dir=str(export_dir),
        origin={"checkpoint": "ckpt-7"},
        images={"one": _png(70, 150), "other": _png(30, 20)},
        **kwargs,
    )


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, tmp_path_factory):
    """The report of an export in each format."""
    needs_runtime(request.param)
    return _export(tmp_path_factory.mktemp("exports") / request.param, request.param, tiles=(70, 20))


def _model_predictor(read=None):
    return Predictor.from_model(ColorNetwork(), read or postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO)


def test_the_folder_has_what_its_users_need(exported):
    file_format = os.path.basename(exported.path)
    files = {FORMATS[file_format].file, *(["model.bin"] if file_format == "openvino" else [])}
    files |= {"export_info.json", "dataset_info.json", "dataset_info.textproto", "numpy_pipeline.py"}
    assert set(os.listdir(exported.path)) == files
    assert os.listdir(os.path.dirname(exported.path)) == [file_format]  # Nothing temporary stays beside it.
    with open(os.path.join(exported.path, "export_info.json")) as file:
        info = json.load(file)
    assert (info["format"], info["file"], info["checkpoint"]) == (file_format, FORMATS[file_format].file, "ckpt-7")
    assert info["inputs"] == {"image": {"type": "float32", "shape": [1, *CROP_SIZE, 3]}}
    assert info["outputs"]["mask_logits"]["shape"] == [1, 25, 33, 4]
    assert class_table.load(os.path.join(exported.path, "dataset_info.textproto")) == INFO
    assert (exported.agreement.pixels, exported.agreement.segments) == (70 * 150 + 30 * 20, 3 + 3)
    assert (exported.agreement.differing, exported.num_weights) == (0, 4 * 3 + 4 * 3)


def test_it_predicts_what_the_model_does(exported):
    wanted_of, predictor = _model_predictor(), Predictor.from_export(exported.path)
    assert predictor.dataset_info == INFO and predictor.export_info["checkpoint"] == "ckpt-7"
    for size in SIZES:
        image, _ = striped_image(*size)
        wanted, got = wanted_of(image), predictor(image)
        np.testing.assert_array_equal(got.label_map, wanted.label_map)
        assert [dataclasses.replace(s, score=0.0) for s in got.segments] == [
            dataclasses.replace(s, score=0.0) for s in wanted.segments
        ]
        assert [s.score for s in got.segments] == pytest.approx([s.score for s in wanted.segments], abs=1e-6)
    outputs = predictor.network_outputs(image)
    np.testing.assert_allclose(outputs.class_logits, wanted_of.network_outputs(image).class_logits, atol=1e-5)
    np.testing.assert_array_equal(predictor(image, outputs).label_map, got.label_map)
    with pytest.raises(UserError, match="no mask embeddings; export the checkpoint again as a SavedModel"):
        predictor.features(image)


def test_tiles_and_the_rules_of_images_work_too(exported):
    predictor, image = Predictor.from_export(exported.path), striped_image(100, 200)[0]
    wanted = _model_predictor().in_tiles(70, 20)
    assert (predictor.tile, predictor.tile_overlap) == (70, 20)
    np.testing.assert_array_equal(maxdl_tf.load_predictor(exported.path)(image).label_map, wanted(image).label_map)
    with pytest.raises(UserError, match=r"scale it to 0\.\.255"):
        predictor(image.astype(np.uint16))


def test_mask_wise_post_processing_and_parts_are_exported(tmp_path):
    """The steps around the network are those of the NumPy module, so one format stands for all."""
    needs_runtime("onnx")
    read = postprocessor(overlap_threshold=0.8, split_min_area=300, enlarge=False)
    path = _export(tmp_path / "export", "onnx", read=read).path
    image, _ = striped_image(70, 120)
    image[20:40, 90:] = image[0, 0]  # A second red part.
    got, wanted = Predictor.from_export(path)(image), _model_predictor(read)(image)
    np.testing.assert_array_equal(got.label_map, wanted.label_map)
    assert len(got.segments) == len(wanted.segments) == 4


class OtherColors(ColorNetwork):
    """Takes red for green."""

    def __init__(self):
        super().__init__()
        self.colors.assign(tf.gather(self.colors, [1, 0, 2, 3]))


class ColorProducts(ColorNetwork):
    """Compares colors by a matrix product."""

    def call(self, images, training=False):
        outputs = super().call(images)
        feature = images[:, :: self.output_stride, :: self.output_stride] / 255.0
        products = feature @ tf.transpose(self.colors)
        return outputs._replace(mask_logits=100.0 * products - 50.0 * tf.reduce_sum(tf.square(self.colors), axis=1))


def test_onnx_in_8_bits_takes_the_ranges_of_images(tmp_path):
    needs_runtime("onnx")
    import onnx

    def export(name, images, **kwargs):
        options = {"model": ColorProducts(), "weights": "int8", "calibration_images": images, **kwargs}
        return _export(tmp_path / name, "onnx", **options).path

    path = export("a", {"one": _png(70, 150), "other": _png(30, 20)}, min_agreement=0.98)
    types = {node.op_type for node in onnx.load(os.path.join(path, "model.onnx")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types
    image, _ = striped_image(70, 150)
    got, wanted = (predictor(image) for predictor in (Predictor.from_export(path), _model_predictor()))
    assert (got.label_map == wanted.label_map).mean() >= 0.98
    with pytest.raises(RuntimeError, match="on image one only"):  # Black images say nothing of the ranges of others.
        export("b", {"black": tf.io.encode_png(np.zeros([97, 129, 3], np.uint8)).numpy()})
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_network_that_does_something_else_is_not_kept(tmp_path, file_format):
    needs_runtime(file_format)
    with pytest.raises(RuntimeError, match=r"on image one only .* of the exported model's labels are the model's"):
        _export(tmp_path / "a", file_format, inference_model=OtherColors())
    assert os.listdir(tmp_path) == []


def _fails(network, path, weights, inputs):
    raise NotImplementedError("no such operation")


def _writes_nonsense(network, path, weights, inputs):
    with open(path, "wb") as file:
        file.write(b"nonsense")


def _has_no_space(network, path, weights, inputs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (_fails, RuntimeError, r"cannot be converted to onnx \(no such operation\)"),
        (_writes_nonsense, RuntimeError, "does not run in a fresh process"),
        (_has_no_space, UserError, "No space left on device; is the disk full"),
    ],
)
def test_a_broken_conversion_leaves_nothing(tmp_path, monkeypatch, write, error, message):
    needs_runtime("onnx")
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(write=write))
    with pytest.raises(error, match=message):
        _export(tmp_path / "a", "onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("file_format", FORMATS)
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, file_format):
    monkeypatch.setitem(sys.modules, FORMATS[file_format].packages[0], None)  # As if it were not installed.
    with pytest.raises(UserError, match=rf"pip install 'maxdl_tf\[{file_format}\]'"):
        portable_model.check_format(file_format, str(tmp_path / "a"))


def test_a_runtime_that_is_missing_where_an_export_is_loaded_is_named(exported, monkeypatch):
    file_format = os.path.basename(exported.path)
    monkeypatch.setitem(sys.modules, FORMATS[file_format].packages[-1], None)
    with pytest.raises(UserError, match=rf"pip install 'maxdl_tf\[{file_format}\]'"):
        Predictor.from_export(exported.path)


def test_a_damaged_export_is_told(exported, tmp_path):
    for number, (name, content, message) in enumerate(
        (
            ("export_info.json", "{", "the export is damaged"),
            ("export_info.json", "{}", "the export is damaged"),
            ("dataset_info.json", "{}", "the export is damaged"),
            (FORMATS[os.path.basename(exported.path)].file, "nonsense", "the model cannot be loaded"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(exported.path, folder)
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=message):
            Predictor.from_export(str(folder))
    info = json.loads((tmp_path / "3" / "export_info.json").read_text())
    (tmp_path / "3" / "export_info.json").write_text(json.dumps({**info, "format": "other"}))
    with pytest.raises(UserError, match="format 'other' is none of onnx, openvino, litert"):
        Predictor.from_export(str(tmp_path / "3"))


def test_taken_and_remote_folders_are_refused(tmp_path):
    needs_runtime("onnx")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        _export(tmp_path / "file", "onnx")
    with pytest.raises(UserError, match="--format onnx writes to this machine only"):
        portable_model.check_format("onnx", "gs://bucket/export")


def test_the_copy_of_the_pipeline_is_this_packages(exported):
    with open(os.path.join(exported.path, "numpy_pipeline.py")) as copy, open(numpy_pipeline.__file__) as original:
        assert copy.read() == original.read()


def test_the_documented_program_needs_the_folder_alone(tmp_path):
    """The Python block of docs/formats.md, without TensorFlow and this package."""
    needs_runtime("onnx")
    text = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
    (code,) = (content for _, language, content in code_blocks(text) if language == "python")
    path = _export(tmp_path / "exports" / "shapes_onnx", "onnx").path
    image, _ = striped_image(70, 150)
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=95)
    blocked = "import sys\nsys.modules.update(tensorflow=None, maxdl_tf=None)\n"
    program = f"{blocked}{code}\nnp.save('label_map.npy', label_map)\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = Predictor.from_export(path)(str(tmp_path / "photo.jpg"))
    np.testing.assert_array_equal(np.load(tmp_path / "label_map.npy"), wanted.label_map)
    assert done.stdout.startswith("[1 1 3] [0.9")


def test_it_is_measured(tmp_path, monkeypatch):
    needs_runtime("onnx")
    speed = machine.Speed(100.0, 100.0)
    monkeypatch.setattr(machine, "measure_speed", lambda dtype: speed)
    path = _export(tmp_path / "export", "onnx").path
    figures = measure.predict(None, path, [], rounds=1)
    assert list(figures["part_seconds"]) == ["decode", "network", "postprocess", "encode"]
    assert (figures["crop_size"], figures["images"]) == (list(CROP_SIZE), 4) and "weights" not in figures
