"""The Python face, and the code of docs/python_api.md, at sizes that take seconds."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import maxdl_tf
from maxdl_tf import class_table, config, evaluate
from maxdl_tf.data_gen import shapes
from maxdl_tf.errors import UserError
from maxdl_tf.tasks import checks
from tests.helpers import REPOSITORY, in_process

EXPERIMENT = "shapes/max_deeplab_tiny_81"
SMALL = {
    "model": {
        "width": {"multiplier": 0.5, "stem_multiplier": 0.5},
        "postprocess": {"class_threshold": 0, "pixel_threshold": 0, "thing_area_limit": 1, "stuff_area_limit": 1},
    },
    "train_dataset": {"crop_size": 33, "batch_size": 2},
    "eval_dataset": {"crop_size": 33, "batch_size": 2},
    "training": {"steps": 2},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The current folder while these tests run: the files that docs/python_api.md names, small."""
    from maxdl_tf.export import saved_model
    from tests.inference import color_network

    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SHAPES_TFRECORDS", "shapes_tfrecords")
        draw = ("--height=33", "--width=33", "--output_dir=shapes_tfrecords")
        assert in_process(shapes, *draw, "--split=train", "--count=4") == 0
        assert in_process(shapes, *draw, "--split=val", "--count=2", "--image_dir=pictures") == 0
        # A file comes before the packaged experiment of the same name.
        small = maxdl_tf.load_experiment(EXPERIMENT, **SMALL)
        (folder / "shapes").mkdir()
        (folder / EXPERIMENT).write_text(config.experiment_to_text(small))
        _write_labels(folder / "labels", small)

        image, labels = color_network.striped_image(97, 129)
        Image.fromarray(image).save("photo.jpg", quality=95)
        Image.fromarray(labels.astype(np.uint16)).save("photo_labels.png")
        saved_model.export_saved_model(
            color_network.ColorNetwork(),
            color_network.postprocessor(),
            crop_size=color_network.CROP_SIZE,
            dataset_info=color_network.INFO,
            export_dir="exports/shapes/1",
            origin={},
        )
        yield folder


def _write_labels(folder, experiment) -> None:
    """The label maps of eval_dataset as 16-bit PNGs."""
    from maxdl_tf.tasks import task_of

    folder.mkdir()
    for batch in task_of(experiment).build_evaluation_batches():
        for image_id, label_map in zip(batch.image_ids.numpy(), batch.label_maps.numpy()):
            Image.fromarray(label_map.astype(np.uint16)).save(folder / f"{image_id.decode()}.png")


@pytest.fixture(scope="module")
def documented(workplace) -> dict:
    """Runs all Python blocks of docs/python_api.md, in order; gives the variables that they leave."""
    text = (REPOSITORY / "docs" / "python_api.md").read_text(encoding="utf-8")
    namespace: dict = {}
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(1)].count("\n")
        if "panoptic_targets" in match.group(1):
            namespace["frozen_before"] = [v.numpy() for v in namespace["model"].pretrained_variables]
        exec(compile("\n" * line + match.group(1), "docs/python_api.md", "exec"), namespace)
    return namespace


# --- the names ---


def test_the_import_is_quick_and_imports_nothing():
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter(); import maxdl_tf; "
        "print(time.perf_counter() - start, *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    seconds, *modules = done.stdout.split()
    assert modules == ["maxdl_tf"]
    assert float(seconds) < 0.1


def test_names_are_listed_and_others_are_unknown():
    assert set(maxdl_tf.__all__) <= set(dir(maxdl_tf))
    assert set(maxdl_tf.__all__) == set(maxdl_tf._MODULE_OF)
    with pytest.raises(AttributeError, match="module 'maxdl_tf' has no attribute 'load_model'"):
        _ = maxdl_tf.load_model


@pytest.mark.parametrize("name", ["build_model", "load_experiment", "load_predictor"])
def test_help_says_what_to_pass(name):
    function = getattr(maxdl_tf, name)
    docstring = inspect.getdoc(function)
    assert [section for section in ("Args:", "Returns:", "Raises:", "Example:") if section not in docstring] == []
    arguments = docstring[docstring.index("Args:") : docstring.index("Returns:")]
    assert re.findall(r"^  \W*(\w+): ", arguments, re.MULTILINE) == list(inspect.signature(function).parameters)


# --- experiments, models, predictors ---


def test_overrides_are_text_and_keywords_and_keywords_win():
    text = ["training { steps: 7 }", "training { seed: 5 } model { num_slots: 3 }"]
    experiment = maxdl_tf.load_experiment(EXPERIMENT, text, model={"num_slots": 4}, training={"ema_decay": 0.5})
    options = experiment.training
    assert (options.steps, options.seed, options.ema_decay, experiment.model.num_slots) == (7, 5, 0.5, 4)
    assert maxdl_tf.load_experiment(EXPERIMENT, "training { steps: 8 }").training.steps == 8
    with pytest.raises(UserError, match=r"^the keyword arguments: training.ema_decay 7: must lie between 0 and 1"):
        maxdl_tf.load_experiment(EXPERIMENT, text, training={"ema_decay": 7})
    with pytest.raises(UserError, match=r"^overrides\[0\]: training.steps 0: must be at least 1"):
        maxdl_tf.load_experiment(EXPERIMENT, "training { steps: 0 }")


def test_the_model_has_the_documented_shapes(workplace):
    model = maxdl_tf.build_model(EXPERIMENT)
    outputs = model(np.zeros([1, 33, 49, 3], np.float32), training=False)
    assert outputs.mask_logits.shape == (1, 9, 13, 16)


@pytest.mark.parametrize(
    ("path", "experiment", "complaint"),
    [
        ("nowhere", None, "nowhere is no model: wanted the folder of an export, a folder of checkpoints, or"),
        (
            "pictures",
            None,
            r"pictures/experiment.textproto does not exist; check .* name the experiment .* in Python, experiment$",
        ),
        ("pictures", EXPERIMENT, "no checkpoint in pictures"),
        ("exports/shapes/1", EXPERIMENT, "is an export, which has its own configuration; drop `experiment`"),
    ],
)
def test_what_is_no_model_is_named(workplace, path, experiment, complaint):
    with pytest.raises(UserError, match=complaint):
        maxdl_tf.load_predictor(path, experiment)


def test_a_folder_of_exports_is_its_highest_version(workplace, tmp_path):
    for version in ("9", "10", "latest"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    assert checks.find_export(str(tmp_path)) == str(tmp_path / "10")
    assert checks.find_export(str(tmp_path / "9")) == str(tmp_path / "9")
    (tmp_path / "ckpt-1.index").touch()  # Exports in a folder of checkpoints.
    assert checks.find_export(str(tmp_path)) is None
    assert maxdl_tf.load_predictor("exports/shapes")("photo.jpg").segments


# --- docs/python_api.md ---


def test_predictions_of_the_document(documented, workplace):
    result = documented["result"]
    assert {segment.id for segment in result.segments} == set(np.unique(result.label_map)) - {0}
    np.testing.assert_array_equal(documented["label_map"], result.label_map)  # By the post-processing in NumPy.
    assert documented["metric"].result().all.pq > 0.9  # The network of these tests segments its images well.
    with Image.open(workplace / "overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), np.asarray(result.overlay()))
    assert documented["model"].name and documented["outputs"].mask_logits.shape[0] == 1


def test_the_commands_read_checkpoints_of_the_documented_loop(documented, workplace, capsys):
    folder = workplace / "runs" / "own_loop"
    assert in_process(evaluate, "--checkpoint", folder) == 0
    assert re.search(r"^all ", capsys.readouterr().out, re.MULTILINE)


def test_a_folder_of_checkpoints_is_complete_by_itself(documented, workplace, tmp_path):
    """It predicts the same elsewhere, where the class table that its experiment names does not exist."""
    predictor = documented["predictor"]
    folder = workplace / "runs" / "own_loop"
    moved = folder.rename(tmp_path / "moved")
    text = (moved / config.EXPERIMENT_FILE).read_text()
    (moved / config.EXPERIMENT_FILE).write_text(re.sub(r'dataset_info: ".*"', 'dataset_info: "gone"', text))
    picture = next(workplace.glob("pictures/*.jpg"))
    again = maxdl_tf.load_predictor(moved / "ckpt-2")(picture)
    np.testing.assert_array_equal(again.label_map, predictor(picture).label_map)
    assert predictor.dataset_info == class_table.load(str(moved / class_table.FILE_NAME))


def test_the_documented_loop_trains_all_but_what_is_frozen(documented):
    assert int(documented["global_step"]) == 2 * SMALL["training"]["steps"]
    model = documented["model"]
    for variable, before in zip(model.pretrained_variables, documented["frozen_before"]):
        np.testing.assert_array_equal(variable.numpy(), before)
    assert 0 < len(model.trainable_variables) < len(model.variables)
