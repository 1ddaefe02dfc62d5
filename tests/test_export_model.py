"""The commands maxdl-export and maxdl-predict with the real model, small and untrained."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, config, export_model, panoptic_ids, predict, processors
from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.export.test_portable_model import needs_runtime
from tests.helpers import REPOSITORY, in_process
from tests.inference.color_network import INFO

# Thresholds of 0, so that the untrained model sees something.
EXPERIMENT = """
model {
  variant: "tiny" num_slots: 12 batch_norm_momentum: 0
  postprocess { class_threshold: 0 pixel_threshold: 0 thing_area_limit: 1 stuff_area_limit: 1 }
}
eval_dataset { file_pattern: "${CONFIG_DIR}/val-*.tfrecord" crop_size: 65 crop_size: 97 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Has experiment.textproto and its class table."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "experiment.textproto").write_text(EXPERIMENT)
    (folder / class_table.FILE_NAME).write_text(class_table.to_text(INFO))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """No variable has its initial value, those of batch norms neither, which have statistics of an image."""
    model = PanopticTask(config.load_experiment(str(folder / "experiment.textproto"))).build_model()
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable + generator.uniform(0.0, 0.1, variable.shape))
    model(tf.image.resize(generator.uniform(0.0, 255.0, [1, 5, 7, 3]), [65, 97]), training=True)
    return model


@pytest.fixture(scope="module")
def trained(folder, model):
    """The folder, with model/ckpt-30."""
    step = tf.Variable(30, dtype=tf.int64)
    Checkpoints(str(folder / "model"), model=model, global_step=step, log=lambda _: None).save()
    return folder


@pytest.fixture(scope="module")
def exported(trained):
    """(export_dir, what the command printed)"""
    export_dir = trained / "exports" / "1"
    command = [sys.executable, str(REPOSITORY / "maxdl_tf" / "export_model.py")]
    command += ["--config_file", trained / "experiment.textproto", "--checkpoint", trained / "model"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "--export_dir", export_dir], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return export_dir, done.stdout


def _run(module, **flags):
    return in_process(module, *(part for name, value in flags.items() for part in (f"--{name}", value)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    photos = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(1)
    for name, size in (("wide", (40, 211)), ("large", (150, 120)), ("dot", (1, 1))):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3)).astype(np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(photos / f"{name}.png")
    return photos


@pytest.fixture(scope="module")
def of_checkpoint(trained, photos, tmp_path_factory):
    """The checkpoint's predictions of the photos."""
    output = tmp_path_factory.mktemp("predictions") / "checkpoint"
    config_file = trained / "experiment.textproto"
    assert _run(predict, model=trained / "model", config_file=config_file, input=photos, output=output) == 0
    return output


def _check_same_predictions(of_export, of_checkpoint):
    for name in ("wide", "large", "dot"):
        one, other = (
            panoptic_ids.color_to_id(np.asarray(Image.open(folder / "panoptic" / f"{name}.png")))
            for folder in (of_export, of_checkpoint)
        )
        np.testing.assert_array_equal(one, other)
        assert one.any()
    annotations = [json.loads((folder / "panoptic.json").read_text()) for folder in (of_export, of_checkpoint)]
    scores = [
        [segment.pop("score") for image in coco["annotations"] for segment in image["segments_info"]]
        for coco in annotations
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)  # Batch norms are folded in one of them.
    assert annotations[0] == annotations[1]


def test_the_export_says_what_it_did(trained, exported):
    export_dir, output = exported
    assert "ckpt-30, step 30" in output
    assert f"exported {export_dir}" in output and "labels equal on" in output
    info = json.loads((export_dir / "assets" / "export_info.json").read_text())
    assert (info["experiment"], info["step"], info["crop_size"]) == ("experiment", 30, [65, 97])
    assert os.listdir(export_dir.parent) == ["1"]


def test_batch_norms_and_the_auxiliary_semantic_branch_stay_behind(model, exported):
    """The export has no variables of batch norms and of the auxiliary branch."""
    branch = {v.ref() for layer in (model.semantic_head, model.semantic_decoder) for v in layer.variables}
    assert branch
    loaded = tf.saved_model.load(str(exported[0]))
    kernels = [v for v in model.trainable_variables if v.ref() not in branch and "kernel" in v.name]
    stored = {tuple(v.shape) for v in loaded.weights}
    assert len(loaded.weights) < len(model.variables) - len(branch)
    assert {tuple(v.shape) for v in kernels if v.shape.rank == 4} <= stored
    assert not [v.name for v in loaded.weights if "moving" in v.name]


def test_saved_model_and_checkpoint_predict_the_same(exported, photos, of_checkpoint, tmp_path):
    assert _run(predict, model=exported[0], input=photos, output=tmp_path / "export") == 0
    _check_same_predictions(tmp_path / "export", of_checkpoint)


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # Importing it fails.
from maxdl_tf import predict
predict.run()
"""


@pytest.mark.parametrize("file_format", ["onnx", "openvino", "litert"])
def test_other_formats_predict_the_same_without_tensorflow(trained, photos, of_checkpoint, tmp_path, file_format):
    needs_runtime(file_format)
    config_file, export_dir = trained / "experiment.textproto", tmp_path / "exports" / "1"
    flags = {"config_file": config_file, "checkpoint": trained / "model", "export_dir": export_dir}
    assert _run(export_model, **flags, format=file_format) == 0
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, "--model", tmp_path / "exports", "--input", photos]
    command += ["--output", tmp_path / "predictions"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    _check_same_predictions(tmp_path / "predictions", of_checkpoint)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"config_file": "nowhere.textproto"}, "nowhere.textproto: there is no such file"),
        ({"checkpoint": "nowhere/ckpt-1"}, "--checkpoint nowhere/ckpt-1 does not exist"),
        ({"override": "eval_dataset { crop_size: 64 }"}, "must be 16k+1"),
        ({"max_pixels": 0}, "--max_pixels=0: 0 is not a positive integer"),
        ({"compute": "bfloat16", "weights": "float16"}, "--weights float16 does not go with --compute bfloat16"),
        ({"format": "onnx", "max_pixels": 9}, "--max_pixels is for --format saved_model; drop it with --format onnx"),
        ({"format": "openvino", "compute": "auto"}, "--compute is for --format saved_model"),
        ({"format": "openvino", "weights": "int8"}, "--weights int8: --format openvino takes float32"),
        ({"format": "litert", "weights": "float16"}, "--weights float16: --format litert takes float32, int8"),
        ({"format": "onnx", "weights": "int8"}, "--format onnx --weights int8 needs --calibration_images"),
        ({"calibration_images": "x.png"}, "--calibration_images is for --format onnx --weights int8; drop it"),
        ({"weights": "int8"}, "--weights int8: --format saved_model takes float32, float16, bfloat16"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(trained, tmp_path, capsys, changed, message):
    flags = {
        "config_file": trained / "experiment.textproto",
        "checkpoint": trained / "model",
        "export_dir": tmp_path / "out",
        **changed,
    }
    assert _run(export_model, **flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_bfloat16_needs_folded_batch_norms(trained, tmp_path, capsys):
    flags = ("--checkpoint", trained / "model", "--export_dir", tmp_path / "out", "--nofold", "--compute", "auto")
    assert in_process(export_model, *flags) == 2
    assert "--compute auto needs folded batch norms; drop --nofold" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported_in_bfloat16(trained):
    """(export_dir, what the command printed), of an untrained model whose labels rounding decides."""
    export_dir = trained / "bfloat16"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = _run(
            export_model,
            checkpoint=trained / "model",
            export_dir=export_dir,
            compute="bfloat16",
            min_agreement=0.5,
            config_file=trained / "experiment.textproto",
        )
    assert status == 0
    return export_dir, output.getvalue()


def test_an_export_in_bfloat16_states_its_agreement(exported_in_bfloat16):
    export_dir, output = exported_in_bfloat16
    # Some of the differences may be proven ties, which count as equal.
    counts = r"labels equal on (\d+) pixels(?: and tied on (\d+))? and different on (\d+) \((\d\d\.\d\d) % equal\)"
    equal, tied, different, share = (float(number or 0) for number in re.search(counts, output).groups())
    assert share == pytest.approx(100 * (equal + tied) / (equal + tied + different), abs=0.01)
    info = json.loads((export_dir / "assets" / "export_info.json").read_text())
    assert (info["compute"], info["weights"]) == ("bfloat16", "bfloat16")
    assert {weight.dtype for weight in tf.saved_model.load(str(export_dir)).weights} == {tf.bfloat16, tf.float32}


def test_a_checkpoint_predicts_in_bfloat16_as_its_export(
    trained, exported, exported_in_bfloat16, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(processors, "bfloat16_instruction", lambda: "avx512_bf16")
    generator = np.random.default_rng(1)
    Image.fromarray(generator.integers(0, 256, (65, 97, 3)).astype(np.uint8)).save(tmp_path / "photo.png")
    photo, config_file = tmp_path / "photo.png", trained / "experiment.textproto"
    of_checkpoint, of_export, of_float32 = (tmp_path / name for name in ("checkpoint", "export", "float32"))
    model = trained / "model"
    assert _run(predict, model=model, config_file=config_file, input=photo, output=of_checkpoint, compute="auto") == 0
    assert "computing in bfloat16: this processor has avx512_bf16" in capsys.readouterr().out
    assert _run(predict, model=exported_in_bfloat16[0], input=photo, output=of_export) == 0
    assert _run(predict, model=exported[0], input=photo, output=of_float32) == 0
    of_checkpoint, of_export, of_float32 = (
        json.loads((folder / "panoptic.json").read_text())["annotations"]
        for folder in (of_checkpoint, of_export, of_float32)
    )
    assert of_checkpoint == of_export
    assert of_checkpoint != of_float32


def test_the_computation_of_a_saved_model_is_fixed(exported, tmp_path, capsys):
    assert _run(predict, model=exported[0], input=tmp_path, output=tmp_path / "out", compute="bfloat16") == 2
    error = capsys.readouterr().err
    assert "is a SavedModel, whose computation is fixed" in error and error.count("\n") == 1
