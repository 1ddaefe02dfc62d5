"""Which experiment a checkpoint is used with, and what is said if it is another than the one it was trained with."""

from __future__ import annotations

import os

import pytest

from maxdl_tf import class_table, config
from maxdl_tf.errors import UserError
from maxdl_tf.tasks import checkpoint_experiment

EXPERIMENT = "shapes/max_deeplab_tiny_81"
TRAINED = "train_dataset { crop_size: 129 } eval_dataset { crop_size: 129 } training { steps: 7 }"


@pytest.fixture
def model_dir(tmp_path):
    """A folder as maxdl-train leaves it, after an override of the crop."""
    experiment = config.load_experiment(EXPERIMENT, [TRAINED])
    config.save_experiment(experiment, class_table.of_dataset(experiment.eval_dataset), str(tmp_path))
    (tmp_path / "ckpt-7.index").touch()
    return str(tmp_path)


@pytest.mark.parametrize("checkpoint", ["", "ckpt-7"])
def test_the_experiment_beside_the_checkpoint_with_its_class_table_is_the_default(model_dir, checkpoint, capsys):
    experiment = checkpoint_experiment.load(os.path.join(model_dir, checkpoint), None, ["evaluation { max_images: 5 }"])
    assert (experiment.eval_dataset.crop_size, experiment.evaluation.max_images) == ([129], 5)
    assert experiment.eval_dataset.dataset_info == os.path.join(model_dir, class_table.FILE_NAME)
    other = checkpoint_experiment.load(model_dir, None, ['eval_dataset { dataset_info: "other" }'])
    assert other.eval_dataset.dataset_info == "other"
    assert capsys.readouterr().err == ""


def test_another_experiment_wins_and_what_changes_predictions_is_said(model_dir, capsys):
    changed = "model { num_slots: 9 drop_path_keep: 0.5 postprocess { class_threshold: 0.6 } } loss { temperature: 2 }"
    experiment = checkpoint_experiment.load(model_dir, EXPERIMENT, [changed])
    assert list(experiment.eval_dataset.crop_size) == [81]
    assert capsys.readouterr().err == (
        f"warning: {model_dir}/experiment.textproto, with which the checkpoint was trained, differs from this "
        "experiment: model.num_slots 9 instead of 16, model.postprocess.class_threshold 0.6 instead of 0.4, "
        "train_dataset.crop_size 81 instead of 129, eval_dataset.crop_size 81 instead of 129; drop --config_file to "
        "use it\n"
    )


@pytest.mark.parametrize("content", [None, "field_of_a_later_version: 5"])
def test_a_config_is_enough(tmp_path, content, capsys):
    if content:
        (tmp_path / config.EXPERIMENT_FILE).write_text(content)
    assert checkpoint_experiment.load(str(tmp_path), EXPERIMENT).name == "max_deeplab_tiny_81"
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=config.EXPERIMENT_FILE):
        checkpoint_experiment.load(str(tmp_path))
