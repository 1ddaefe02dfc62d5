import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from maxdl_tf import class_table
from maxdl_tf.errors import UserError
from maxdl_tf.export import saved_model
from maxdl_tf.export.verification import Agreement
from maxdl_tf.inference.diagnosis import diagnose
from maxdl_tf.inference.predictor import Predictor
from tests.inference.color_network import (
    BLUE,
    CROP_SIZE,
    GRAY,
    GREEN,
    INFO,
    RED,
    ColorNetwork,
    postprocessor,
    striped_image,
)
from tests.inference.test_predictor import SIZES


def _export(export_dir, model=None, read=None, dataset_info=INFO, **kwargs):
    return saved_model.export_saved_model(
        model or ColorNetwork(),
        read or postprocessor(),
        crop_size=CROP_SIZE,
        dataset_info=dataset_info,
        export_dir=str(export_dir),
        origin={"checkpoint": "ckpt-7"},
        **kwargs,
    )


@pytest.fixture
def unverified(monkeypatch):
    """Exports without the process that loads them again; for tests that load them themselves, or compare nothing."""
    monkeypatch.setattr(saved_model, "verify", lambda *_: Agreement(pixels=1, segments=1, ties=0, differing=0))


def _png(*size):
    return tf.io.encode_png(striped_image(*size)[0]).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    export_dir = tmp_path_factory.mktemp("exports") / "colors"
    return _export(export_dir, images={"one": _png(70, 150), "other": _png(30, 20)})


def test_the_report_counts_what_was_compared(exported):
    assert (exported.agreement.pixels, exported.agreement.segments) == (70 * 150 + 30 * 20, 3 + 3)
    assert (exported.num_images, exported.agreement.ties, exported.agreement.differing) == (2, 0, 0)
    assert exported.num_weights == 4 * 3 + 4 * 3
    assert os.listdir(os.path.dirname(exported.path)) == ["colors"]  # Nothing temporary stays beside it.


@pytest.mark.parametrize("size", SIZES)
def test_the_saved_model_predicts_what_the_model_does(exported, size):
    of_model = Predictor.from_model(ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO)
    of_saved_model = Predictor.from_saved_model(exported.path)
    image, _ = striped_image(*size)
    wanted, got = of_model(image), of_saved_model(image)
    np.testing.assert_array_equal(got.label_map, wanted.label_map)
    assert [dataclasses.replace(s, score=0.0) for s in got.segments] == [
        dataclasses.replace(s, score=0.0) for s in wanted.segments
    ]
    assert [s.score for s in got.segments] == pytest.approx([s.score for s in wanted.segments], abs=1e-6)
    assert of_saved_model.dataset_info == INFO


def test_mask_wise_post_processing_and_its_stride_are_exported(tmp_path, unverified):
    """The metadata has what --diagnose and the drawing of features need; that of other exports is as before."""
    network, read = ColorNetwork(output_stride=2), postprocessor(overlap_threshold=0.8, output_stride=2)
    path = _export(tmp_path / "export", network, read, images={"one": _png(70, 150)}).path
    of_model = Predictor.from_model(network, read, crop_size=CROP_SIZE, dataset_info=INFO)
    of_saved_model = Predictor.from_saved_model(path)
    image, _ = striped_image(130, 120, (RED, GRAY, GREEN, BLUE))
    wanted = of_model(image)
    assert {segment.class_id for segment in wanted.segments} == {1, 3} and len(wanted.segments) == 3
    np.testing.assert_array_equal(of_saved_model(image).label_map, wanted.label_map)
    assert of_saved_model.postprocessor.arguments == of_saved_model.export_info["postprocess"] == read.arguments
    assert of_saved_model.export_info["postprocess"]["overlap_threshold"] == 0.8

    outputs = of_saved_model.network_outputs(image)
    np.testing.assert_array_equal(of_saved_model(image, outputs).label_map, wanted.label_map)
    found = diagnose(outputs, of_saved_model.postprocessor, wanted, wanted)
    assert (found.masks, found.no_object.masks, found.segments) == (4, 1, 3)
    # 130 x 120 becomes 97 x 90 in the crop, and 49 x 45 at stride 2.
    assert of_saved_model.features(image).slot.shape == (49, 45)


def test_split_things_are_exported(tmp_path):
    """Red is in two parts, the smaller of which has the first number behind those of the four slots."""
    network, read = ColorNetwork(), postprocessor(split_min_area=300)
    path = _export(tmp_path / "export", network, read, images={"one": _png(70, 150)}).path
    of_saved_model = Predictor.from_saved_model(path)
    image, _ = striped_image(130, 120, (RED, BLUE, RED, RED, BLUE, GREEN))
    image[2:9, 50:57] = BLUE  # Stuff is not split.
    image[120:127, 110:117] = RED  # A part that is too small.
    wanted = Predictor.from_model(network, read, crop_size=CROP_SIZE, dataset_info=INFO)(image)
    got = of_saved_model(image)
    np.testing.assert_array_equal(got.label_map, wanted.label_map)
    assert [s.id for s in got.segments] == [s.id for s in wanted.segments] == [1001, 1002, 1005, 3000]
    assert got.label_map[60, 5] == 1005 and got.label_map[60, 50] == 1001 and got.label_map[123, 113] == INFO.void
    assert [s.area for s in got.segments] == [(got.label_map == s.id).sum() for s in got.segments]
    assert of_saved_model.postprocessor.arguments == of_saved_model.export_info["postprocess"] == read.arguments
    outputs = of_saved_model.network_outputs(image)
    np.testing.assert_array_equal(of_saved_model(image, outputs).label_map, wanted.label_map)
    assert diagnose(outputs, of_saved_model.postprocessor, got, got).further_parts == 1


def test_an_image_that_is_not_enlarged_keeps_its_size_in_the_crop(tmp_path, unverified):
    network, read = ColorNetwork(), postprocessor(enlarge=False)
    path = _export(tmp_path / "export", network, read, images={"one": _png(30, 50), "large": _png(70, 150)}).path
    image, _ = striped_image(93, 81)
    padded = np.pad(image, [[0, 4], [0, 48], [0, 0]], constant_values=127)
    wanted = Predictor.from_model(network, read, crop_size=CROP_SIZE, dataset_info=INFO)
    # The image lies in the upper left corner, as if its padding were part of it.
    outputs, padded_outputs = wanted.network_outputs(image), wanted.network_outputs(padded)
    np.testing.assert_array_equal(outputs.mask_logits[:, :24, :21], padded_outputs.mask_logits[:, :24, :21])
    of_saved_model = Predictor.from_saved_model(path)
    label_map = of_saved_model(image).label_map
    np.testing.assert_array_equal(label_map, wanted(image).label_map)
    outputs = of_saved_model.network_outputs(image)
    np.testing.assert_array_equal(of_saved_model(image, outputs).label_map, label_map)
    found = diagnose(outputs, of_saved_model.postprocessor, wanted(image), wanted(image))
    assert found.segments == 3
    assert found.no_object.pixels < 0.1 * label_map.size  # Between the stripes alone; the padding is not counted.
    assert of_saved_model.features(image).slot.shape == (24, 21)


def test_the_class_table_and_the_origin_travel_with_it(exported):
    assets = os.path.join(exported.path, "assets")
    assert class_table.load(os.path.join(assets, "dataset_info.textproto")) == INFO
    with open(os.path.join(assets, "dataset_info.json")) as file:
        assert file.read() == class_table.to_json(INFO)
    with open(os.path.join(assets, "export_info.json")) as file:
        info = json.load(file)
    assert (info["checkpoint"], info["tensorflow"], info["crop_size"]) == ("ckpt-7", tf.__version__, list(CROP_SIZE))


def test_no_keras_object_is_in_it(exported):
    assert not os.path.exists(os.path.join(exported.path, "keras_metadata.pb"))
    proto = saved_model_pb2.SavedModel()
    with open(os.path.join(exported.path, "saved_model.pb"), "rb") as file:
        proto.ParseFromString(file.read())
    graph = proto.meta_graphs[0]
    kinds = {node.user_object.identifier for node in graph.object_graph_def.nodes if node.HasField("user_object")}
    assert not {kind for kind in kinds if "keras" in kind}
    nodes = [*graph.graph_def.node, *(node for f in graph.graph_def.library.function for node in f.node_def)]
    assert not {node.op for node in nodes} & {"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction"}


def test_the_networks_outputs_can_be_had_too(exported):
    loaded = tf.saved_model.load(exported.path)
    outputs = loaded.network_outputs(tf.zeros([9, 9, 3], tf.uint8))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "pixel_feature": (1, 25, 33, 3),
        "mask_logits": (1, 25, 33, 4),
        "class_logits": (1, 4, 3),
        "mask_embedding": (1, 4, 3),
    }


def test_weights_that_are_not_read_are_not_saved(tmp_path, unverified):
    model = ColorNetwork()
    model.auxiliary = tf.Variable(tf.zeros([1000]))
    assert _export(tmp_path / "a", model).num_weights == 24


def test_an_empty_folder_is_filled_and_a_taken_one_refused(tmp_path, unverified):
    (tmp_path / "empty").mkdir()
    _export(tmp_path / "empty")
    assert (tmp_path / "empty" / "saved_model.pb").exists()
    (tmp_path / "file").touch()
    for taken in ("empty", "file"):
        with pytest.raises(UserError, match="exists and is not an empty folder"):
            _export(tmp_path / taken)
    with pytest.raises(UserError, match="not a folder that can be written to"):
        _export(tmp_path / "file" / "1")


def test_a_saved_model_that_does_something_else_is_not_kept(tmp_path, monkeypatch):
    class OtherColors(ColorNetwork):
        """Takes red for green."""

        def __init__(self):
            super().__init__()
            self.colors.assign(tf.gather(self.colors, [1, 0, 2, 3]))

    with pytest.raises(RuntimeError, match=r"on image one only .* of the exported model's labels are the model's"):
        _export(tmp_path / "a", inference_model=OtherColors(), images={"one": _png(70, 150)})
    with pytest.raises(UserError, match="give images like those of the training as --verify_images"):
        _export(tmp_path / "a", inference_model=OtherColors(), images={"one": _png(70, 150)}, min_agreement=0.99)
    assert os.listdir(tmp_path) == []
    assert _export(tmp_path / "a", inference_model=OtherColors(), images={"one": _png(70, 150)}, min_agreement=0.3)


def test_a_saved_model_that_does_not_load_elsewhere_is_not_kept(tmp_path, monkeypatch):
    save = tf.saved_model.save

    def save_less(exported, folder, **kwargs):
        save(exported, folder, **kwargs)
        os.unlink(os.path.join(folder, "variables", "variables.index"))

    monkeypatch.setattr(tf.saved_model, "save", save_less)
    with pytest.raises(RuntimeError, match="does not run in a fresh process"):
        _export(tmp_path / "a", images={"one": _png(7, 15)})
    assert os.listdir(tmp_path) == []


def test_labels_beyond_a_png_are_told(tmp_path, unverified):
    lines = []
    path = _export(tmp_path / "a", dataset_info=dataclasses.replace(INFO, label_divisor=2**23), log=lines.append).path
    assert "no signature panoptic_png: labels of 'colors' do not fit into PNGs" in lines[0]
    assert "panoptic_png" not in tf.saved_model.load(path).signatures


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def save(exported, folder, **kwargs):
        with open(os.path.join(folder, "saved_model.pb"), "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(UserError, match="No space left on device"):
        _export(tmp_path / "deep" / "a")
    assert os.listdir(tmp_path) == []


def test_what_maxdl_export_did_not_write_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(UserError, match="this version's maxdl-export did not write"):
        Predictor.from_saved_model(str(tmp_path / "other"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        Predictor.from_saved_model(str(tmp_path / "broken"))
