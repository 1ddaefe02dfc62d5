import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import config
from maxdl_tf.errors import UserError
from maxdl_tf.export import saved_model
from maxdl_tf.inference.predictor import Predictor
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor, striped_image
from tests.inference.test_predictor import SIZES


def _export(export_dir, model=None, **kwargs):
    return saved_model.export_saved_model(
        model or ColorNetwork(),
        postprocessor(),
        crop_size=CROP_SIZE,
        dataset_info=INFO,
        export_dir=str(export_dir),
        origin={"checkpoint": "ckpt-7"},
        **kwargs,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    export_dir = tmp_path_factory.mktemp("exports") / "colors"
    image, _ = striped_image(70, 150)
    return _export(export_dir, image=image)


def test_the_report_counts_what_was_compared(exported):
    assert (exported.compared_pixels, exported.compared_segments) == (70 * 150, 3)
    assert exported.num_weights == 4 * 3 + 4 * 3
    assert os.listdir(os.path.dirname(exported.path)) == ["colors"]  # Nothing temporary stays beside it.


@pytest.mark.parametrize("size", SIZES)
def test_the_saved_model_predicts_what_the_model_does(exported, size):
    of_model = Predictor.from_model(ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO)
    of_saved_model = Predictor.from_saved_model(exported.path)
    image, _ = striped_image(*size)
    wanted, got = of_model(image), of_saved_model(image)
    np.testing.assert_array_equal(got.label_map, wanted.label_map)
    assert got.segments == wanted.segments
    assert of_saved_model.dataset_info == INFO


def test_the_class_table_and_the_origin_travel_with_it(exported):
    assets = os.path.join(exported.path, "assets")
    assert config.load_dataset_info(os.path.join(assets, "dataset_info.textproto")) == INFO
    with open(os.path.join(assets, "export_info.json")) as file:
        info = json.load(file)
    assert (info["checkpoint"], info["tensorflow"], info["crop_size"]) == ("ckpt-7", tf.__version__, list(CROP_SIZE))


def test_it_loads_without_this_package_and_without_keras(exported, tmp_path):
    image, labels = striped_image(*CROP_SIZE)
    np.save(tmp_path / "image.npy", image)
    program = f"""
import sys
for name in ("maxdl_tf", "keras", "tf_keras", "official", "tensorflow_addons"):
    sys.modules[name] = None  # Importing it fails.
import numpy as np, tensorflow as tf
signature = tf.saved_model.load({exported.path!r}).signatures["serving_default"]
assert list(signature.structured_input_signature[1]) == ["image"]
result = signature(image=tf.constant(np.load("image.npy")))
np.save("labels.npy", result["panoptic"])
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert (np.load(tmp_path / "labels.npy") == labels).mean() > 0.95
    assert not os.path.exists(os.path.join(exported.path, "keras_metadata.pb"))


def test_the_networks_outputs_can_be_had_too(exported):
    loaded = tf.saved_model.load(exported.path)
    outputs = loaded.network_outputs(tf.zeros([9, 9, 3], tf.uint8))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "pixel_feature": (1, 25, 33, 3),
        "mask_logits": (1, 25, 33, 4),
        "class_logits": (1, 4, 3),
        "mask_embedding": (1, 4, 3),
    }


def test_weights_that_are_not_read_are_not_saved(tmp_path):
    model = ColorNetwork()
    model.auxiliary = tf.Variable(tf.zeros([1000]))
    assert _export(tmp_path / "a", model).num_weights == 24


def test_an_empty_folder_is_filled_and_a_taken_one_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    _export(tmp_path / "empty")
    assert (tmp_path / "empty" / "saved_model.pb").exists()
    (tmp_path / "file").touch()
    for taken in ("empty", "file"):
        with pytest.raises(UserError, match="exists and is not an empty folder"):
            _export(tmp_path / taken)
    with pytest.raises(UserError, match="not a folder that can be written to"):
        _export(tmp_path / "file" / "1")


@pytest.mark.parametrize("what", ["weights", "labels"])
def test_a_saved_model_that_does_something_else_is_not_kept(tmp_path, monkeypatch, what):
    save = tf.saved_model.save

    def save_then_change_the_model(exported, *args, **kwargs):
        save(exported, *args, **kwargs)
        if what == "weights":
            exported.weights[0].assign_add(tf.fill(exported.weights[0].shape, 0.01))
        else:
            exported.segment = lambda image: {
                "panoptic": tf.zeros(image.shape[:2], tf.int32),
                "instance_score": tf.zeros(image.shape[:2]),
                "semantic_score": tf.zeros(image.shape[:2]),
            }

    monkeypatch.setattr(tf.saved_model, "save", save_then_change_the_model)
    image, _ = striped_image(70, 150)
    message = "differ from the model's by up to" if what == "weights" else "exported model's labels are the model's"
    with pytest.raises(RuntimeError, match=message):
        _export(tmp_path / "a", image=image)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def save(exported, folder, **kwargs):
        with open(os.path.join(folder, "saved_model.pb"), "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(UserError, match="No space left on device"):
        _export(tmp_path / "deep" / "a")
    assert os.listdir(tmp_path / "deep") == []


def test_what_maxdl_export_did_not_write_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(UserError, match="not one that maxdl-export wrote"):
        Predictor.from_saved_model(str(tmp_path / "other"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        Predictor.from_saved_model(str(tmp_path / "broken"))
