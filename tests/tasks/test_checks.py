"""What is refused before TensorFlow is imported and a model is built."""

from __future__ import annotations

import dataclasses

import pytest
from google.protobuf import text_format

from maxdl_tf import class_table
from maxdl_tf.errors import UserError
from maxdl_tf.files.intensity import Range
from maxdl_tf.protos import experiment_pb2
from maxdl_tf.tasks import checks

TABLE = class_table.from_source_classes(
    [
        class_table.SourceClass(1, "box", True),
        class_table.SourceClass(2, "sky", False),
        class_table.SourceClass(3, "ground", False),
    ],
    "scenes",
)


@pytest.fixture
def check(tmp_path):
    """`check_run` for training in tmp_path/run, with fields merged over a good experiment."""
    (tmp_path / "train.tfrecord").write_bytes(b"x")
    (tmp_path / class_table.FILE_NAME).write_text(class_table.to_text(TABLE))
    (tmp_path / "run").mkdir()

    def check(fields=""):
        text = f"""
            train_dataset {{ file_pattern: "{tmp_path}/train.tfrecord" crop_size: 33 }}
            training {{ steps: 10 optimizer {{ warmup_steps: 10 }} }}
        """
        experiment = text_format.Parse(text, experiment_pb2.Experiment())
        text_format.Merge(fields, experiment)
        checks.check_run(experiment, str(tmp_path / "run"), trains=True, evaluates=False)

    return check


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            "training { optimizer { warmup_steps: 11 } }",
            r"warmup_steps 11 is more than training.steps 10, .* \'training \{ optimizer \{ warmup_steps: 1 \} \}\'$",
        ),
        (
            "training { initial_checkpoint: 'no/ckpt-1' }",
            r"^training.initial_checkpoint no/ckpt-1: there is no checkpoint",
        ),
        ("training { initial_checkpoint: '${MAXDL_UNSET}/ckpt-1' }", r"initial_checkpoint .* MAXDL_UNSET"),
        (
            "train_dataset { dataset_info: 'no.textproto' }",
            r"^train_dataset.dataset_info 'no.textproto' does not exist",
        ),
        ("train_dataset { file_pattern: '${MAXDL_UNSET}/x' }", r"^train_dataset.file_pattern .* MAXDL_UNSET"),
    ],
)
def test_what_training_refuses(check, fields, complaint):
    check()
    with pytest.raises(UserError, match=complaint):
        check(fields)


def test_a_resumed_training_does_not_read_its_initial_checkpoint(check, tmp_path):
    (tmp_path / "run" / "ckpt-5.index").touch()
    check("training { initial_checkpoint: 'no/ckpt-1' }")


def _trained_with(folder, names: list[str], things=1) -> None:
    """A folder with a checkpoint and a class table of these names in the order of the class logits."""
    classes = [
        dataclasses.replace(entry, name=name, is_thing=number < things)
        for number, (entry, name) in enumerate(zip(TABLE.classes, names))
    ]
    folder.mkdir(exist_ok=True)
    (folder / "ckpt-1.index").touch()
    table = dataclasses.replace(TABLE, classes=tuple(classes))
    (folder / class_table.FILE_NAME).write_text(class_table.to_text(table))


@pytest.mark.parametrize("where", ["run/ckpt-1", "run"])
def test_classes_that_changed_under_a_checkpoint(tmp_path, capsys, where):
    checkpoint = str(tmp_path / where)
    _trained_with(tmp_path / "run", ["box", "sky", "ground"])
    checks.check_classes(checkpoint, TABLE)
    assert capsys.readouterr().err == ""

    _trained_with(tmp_path / "run", ["box", "ground", "sky"])
    swapped = r"trained with the stuff class 'ground' where 'scenes' has the stuff class 'sky'"
    with pytest.raises(UserError, match=swapped):
        checks.check_classes(checkpoint, TABLE)
    checks.check_classes(checkpoint, TABLE, only_starts=True)
    assert capsys.readouterr().err.startswith("warning: ")

    _trained_with(tmp_path / "run", ["box", "sky", "ground"], things=2)
    with pytest.raises(UserError, match=r"the thing 'sky' where 'scenes' has the stuff class 'sky'"):
        checks.check_classes(checkpoint, TABLE)

    _trained_with(tmp_path / "run", ["box", "sky", "ground"])
    checks.check_classes(checkpoint, dataclasses.replace(TABLE, intensity=Range(0, 4095)))
    assert "intensity None, but 'scenes' has range { low: 0 high: 4095 }" in capsys.readouterr().err

    _trained_with(tmp_path / "run", ["box", "heaven", "ground"])  # A new name only.
    checks.check_classes(checkpoint, TABLE)
    assert "trained with the stuff class 'heaven' where 'scenes' has the stuff class 'sky'" in capsys.readouterr().err
