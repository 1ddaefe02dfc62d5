"""The command maxdl-import-checkpoint: an imported checkpoint gives DeepLab2's numbers; a wrong one leaves nothing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import config, export_model, import_checkpoint
from maxdl_tf.checkpoints.save_restore import load_model_weights
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.checkpoints.deeplab2_checkpoints import published_shapes, random_weights, write_deeplab2_checkpoint
from tests.helpers import REPOSITORY, in_process, shared_golden, shared_path
from tests.models.golden_models import FILES, golden_weights
from tests.models.test_golden_models import OUTPUTS

_HEADS = """
    pixel_head_channels: 24 semantic_head_channels: 24
    semantic_low_level_channels: 12 semantic_low_level_channels: 8"""
_KMAX = f"""
  num_slots: 20 pixel_decoder {{ widths: [32, 16, 8, 4] }}
  width {{
    multiplier: 0.0625 memory_channels: 48 transformer_width: 16 ffn_channels: 40 semantic_decoder_channels: 12 {_HEADS}
    stem_multiplier: %s
  }}
  postprocess {{ kind: mask_wise stuff_class_threshold: 0.5 thing_area_limit: 20 stuff_area_limit: 60 }}"""
# The reference's narrow models; s and l have the limits of the published configs.
MODELS = {
    "s": f"""
  variant: "s" postprocess {{ thing_area_limit: 100 stuff_area_limit: 1600 }}
  width {{
    multiplier: 0.125 stem_multiplier: 0.125 memory_channels: 48 transformer_width: 16 ffn_channels: 72
    memory_head_channels: 40 semantic_decoder_channels: 24 {_HEADS}
  }}""",
    "l": f"""
  variant: "l" postprocess {{ thing_area_limit: 256 stuff_area_limit: 4096 }}
  width {{
    multiplier: 0.0625 stem_multiplier: 0.125 memory_channels: 40 transformer_width: 32 ffn_channels: 56
    memory_head_channels: 32 semantic_decoder_channels: 24 {_HEADS}
  }}""",
    "kmax_r50": 'variant: "kmax_r50"' + _KMAX % 0.125,
    "kmax_convnext": 'variant: "kmax_convnext_t"' + _KMAX % 1,
}
EXPERIMENT = """
model {{ mask_channels: 16 {model} }}
eval_dataset {{
  file_pattern: "${{CONFIG_DIR}}/val-*.tfrecord" crop_size: 65
  dataset_info: "{repository}/configs/datasets/coco_panoptic.textproto"
}}
"""


def _config_file(folder, name: str) -> str:
    """The experiment of one of `MODELS`."""
    path = folder / f"{name}.textproto"
    path.write_text(EXPERIMENT.format(model=MODELS[name], repository=REPOSITORY))
    return str(path)


def _run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "maxdl_tf" / "import_checkpoint.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def _run_here(**flags) -> int:
    return in_process(import_checkpoint, *(part for name, value in flags.items() for part in (f"--{name}", value)))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """From a name to a folder with a checkpoint of DeepLab2: the narrow S's own; of the others, as they would be."""

    @functools.cache
    def checkpoint_of(name):
        if name == "s":
            return shared_path("reference", "checkpoints", "deeplab2_tiny_s")
        folder = tmp_path_factory.mktemp(name)
        write_deeplab2_checkpoint(folder, golden_weights(name))
        return folder

    return checkpoint_of


@pytest.mark.parametrize("name", ["s", "l", "kmax_r50", pytest.param("kmax_convnext", marks=pytest.mark.slow)])
def test_an_imported_checkpoint_gives_the_numbers_of_deeplab2(tmp_path, capsys, published, name):
    golden = shared_golden(f"{FILES[name]}_eval")
    config_file = _config_file(tmp_path, name)
    source = published(name)
    output = tmp_path / "imported" / name
    if name == "s":  # Once on its own, from the file.
        done = _run("--deeplab2_checkpoint", source, "--config_file", config_file, "--output", output)
        status, said, complaints = done.returncode, done.stdout, done.stderr
    else:
        status = _run_here(deeplab2_checkpoint=source, config_file=config_file, output=output)
        said, complaints = capsys.readouterr()
    assert (status, complaints) == (0, "")
    count = len(golden_weights(name))
    assert f"{count} variables imported" in said and f"wrote {output}/ckpt-" in said
    assert os.listdir(output.parent) == [name]

    task = PanopticTask(config.load_experiment(config_file))
    model = task.build_model()
    assert load_model_weights(model, str(output)).model_variables == count
    outputs = model(tf.constant(golden["in/image"], tf.float32), training=False)
    values = {key: getattr(outputs, field) for field, key in OUTPUTS.items()}
    for key, value in values.items():
        # The file's own measure: how far the reference moves when the image moves by one unit in the last place.
        # It is 0 for scores that are all but 1, which are compared to the last place.
        error = float(np.abs(value - golden[f"out/{key}"]).max())
        allowed = max(10 * float(golden[f"sens/{key}"]), np.finfo(np.float32).eps)
        assert error <= allowed, f"{key}: {error:.3g}"
    prediction = task.build_postprocessor()(outputs)
    np.testing.assert_array_equal(prediction.panoptic, golden["out/panoptic_pred"])
    accepted = golden["out/panoptic_pred"] != task.dataset_info.void
    for field, key in (("instance_score", "instance_scores"), ("semantic_score", "semantic_scores")):
        error = np.abs(getattr(prediction, field) - golden[f"out/{key}"])[accepted].max()
        assert error <= max(10 * float(golden[f"sens/{key}"]), 4 * np.finfo(np.float32).eps), f"{key}: {error:.3g}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "listed", "count", "weights"),
    [("r50", "kmax_r50", 1184, 72_650_796), ("convnext_t", "kmax_convnext_tiny", 1102, 67_430_412)],
)
def test_a_full_kmax_deeplab_is_imported_and_exported(tmp_path, capsys, variant, listed, count, weights):
    """With the published names and shapes and random weights; the export is verified."""
    write_deeplab2_checkpoint(tmp_path / "deeplab2", random_weights(published_shapes(listed)))
    config_file = REPOSITORY / "configs" / "coco" / f"kmax_{variant}_641.textproto"
    imported = tmp_path / "imported"
    assert _run_here(deeplab2_checkpoint=tmp_path / "deeplab2", config_file=config_file, output=imported) == 0
    assert f"{count} variables  {weights:,} weights" in capsys.readouterr().out
    flags = {"checkpoint": imported, "config_file": config_file, "override": "eval_dataset { crop_size: 129 }"}
    arguments = (part for name, value in flags.items() for part in (f"--{name}", value))
    assert in_process(export_model, *arguments, "--export_dir", tmp_path / "export") == 0
    assert "labels equal on" in capsys.readouterr().out


def test_a_checkpoint_of_another_variant_is_told_in_one_line_and_leaves_nothing(tmp_path, capsys, published):
    source = published("l")
    output = tmp_path / "imported" / "s"
    arguments = ("--deeplab2_checkpoint", source, "--config_file", _config_file(tmp_path, "s"), "--output", output)
    assert in_process(import_checkpoint, *arguments, "--verbose") == 2
    said, complaint = capsys.readouterr()
    assert complaint.count("\n") == 1
    assert f"{source}/ckpt-123 does not fit" in complaint
    assert "variables are in it but unknown here: encoder/_decoder_stage1" in complaint
    assert "variables are of another shape: encoder/" in complaint
    assert said.count("encoder/_decoder_stage1/_block1/") == 10, "--verbose names all"
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config_file": "nowhere.textproto"}, "nowhere.textproto: there is no such file"),
        ({"deeplab2_checkpoint": "nowhere/ckpt-1"}, "nowhere/ckpt-1 is no checkpoint"),
        ({"torch_checkpoint": "file.pth"}, "give either --deeplab2_checkpoint or --torch_checkpoint"),
        ({"output": "."}, "--output . exists and is not an empty folder"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(tmp_path, capsys, changed, message):
    config_file = _config_file(tmp_path, "s")
    flags = {"config_file": config_file, "deeplab2_checkpoint": tmp_path, "output": tmp_path / "out", **changed}
    assert _run_here(**flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["s.textproto"]
