"""Every field of an experiment is read: tasks and runs get an experiment that records which fields they read."""

from unittest import mock

import numpy as np
import pytest
from google.protobuf import descriptor, text_format

from maxdl_tf import config
from maxdl_tf.protos import experiment_pb2, model_pb2

READ_BY_CONFIG = {("Experiment", "base"), ("Experiment", "name")}  # See tests/test_config.py.
READ_BY_COMMANDS = {("TrainingOptions", "intra_op_threads")}  # See tests/test_trainer.py.


class Recorder:
    """Stands for a message and notes each field that is read, as (message name, field name)."""

    def __init__(self, message, seen):
        self._message, self._seen = message, seen

    def __getattr__(self, name):
        value = getattr(self._message, name)
        fields = self._message.DESCRIPTOR.fields_by_name
        if name not in fields:
            return value
        self._seen.add((self._message.DESCRIPTOR.name, name))
        return Recorder(value, self._seen) if hasattr(value, "DESCRIPTOR") else value


def all_fields(message: descriptor.Descriptor) -> set:
    fields = {(message.name, field.name) for field in message.fields}
    for field in message.fields:
        if field.message_type is not None:
            fields |= all_fields(field.message_type)
    return fields


@pytest.fixture
def experiment(tmp_path):
    import tensorflow as tf

    from maxdl_tf.data import examples

    (tmp_path / "dataset_info.textproto").write_text(
        'name: "two" segment_class { id: 1 name: "disk" is_thing: true } segment_class { id: 2 name: "sky" }'
    )
    image = tf.io.encode_jpeg(np.zeros((17, 17, 3), np.uint8)).numpy()
    example = examples.encode_panoptic_example(image, "jpeg", np.full((17, 17), 2 * 256, np.int32), "0")
    with tf.io.TFRecordWriter(str(tmp_path / "train.tfrecord")) as writer:
        writer.write(example)
    dataset = f'{{ file_pattern: "{tmp_path}/train.tfrecord" crop_size: 17 augmentation {{ copy_paste {{}} }} }}'
    width = " ".join(
        f"{field.name}: 8"
        for field in model_pb2.WidthOptions.DESCRIPTOR.fields
        if "multiplier" not in field.name and field.name != "semantic_low_level_channels"
    )
    return text_format.Parse(
        f"model {{ variant: 'tiny' num_slots: 4 mask_channels: 8 drop_path_keep: 1 width {{ {width} }}"
        f"  decoder {{ stacks: 0 pretrained_stacks: 0 blocks: 1 }}"
        f"  postprocess {{ kind: mask_wise stuff_class_threshold: 0.5 split_things {{ min_area: 1 }} }} }}"
        f"train_dataset {dataset} eval_dataset {dataset} training {{ steps: 2 seed: 1 ema_decay: 0.5 }}",
        experiment_pb2.Experiment(),
    )


def test_every_field_is_read(experiment, tmp_path):
    import tensorflow as tf

    from maxdl_tf.tasks import run
    from maxdl_tf.tasks.classification import ClassificationTask
    from maxdl_tf.tasks.panoptic import PanopticTask

    seen = set()
    recorder = Recorder(experiment, seen)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    # All that a run reads, but nothing is trained.
    with mock.patch.object(run, "Loop"), mock.patch.object(config, "experiment_to_text", return_value=""):
        training = run.Run(recorder, str(tmp_path), strategy, trains=True, evaluates=True)
        training.train(training.start_training("experiment.textproto"))
        run.Run(recorder, str(tmp_path), strategy, trains=False, evaluates=True).evaluate_continuously()
    PanopticTask(recorder).build_predictor(None)
    with mock.patch.object(ClassificationTask, "kind", PanopticTask.kind):
        ClassificationTask(recorder).build_loss(model=None)

    unread = all_fields(experiment_pb2.Experiment.DESCRIPTOR) - seen - READ_BY_CONFIG - READ_BY_COMMANDS
    assert not unread, f"fields that nothing reads: {sorted(unread)}; read them or delete them from protos/"


def test_the_check_sees_an_unread_field(experiment):
    seen = set()
    _ = Recorder(experiment, seen).training.optimizer.beta1
    assert seen == {
        ("Experiment", "training"),
        ("TrainingOptions", "optimizer"),
        ("OptimizerOptions", "beta1"),
    }
