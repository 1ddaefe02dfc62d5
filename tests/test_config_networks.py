"""Every experiment below configs/ can be built and trained: its network, loss and step are traced without memory."""

from __future__ import annotations

import re

import pytest

from maxdl_tf import class_table, tasks
from maxdl_tf.models.variants import VARIANTS
from maxdl_tf.protos import experiment_pb2, training_pb2
from tests.helpers import REPOSITORY
from tests.test_configs import CONFIGS, NAMES, datasets_of, every_config, load

# What takes the least time; the slow test traces all of them.
TRACED_QUICKLY = ("shapes/backbone_tiny_81", "shapes/max_deeplab_tiny_81")
# Building a large network takes 10 seconds or more. The quick test builds S only, and what is small.
BUILT_QUICKLY = [
    name for name in NAMES if "tiny" in name or name in ("coco/max_deeplab_s_641_100k", "coco/overfit_4_images")
]
CROPS = (641, 1025, 1281)


def table_of_experiments() -> dict[str, tuple[int, float]]:
    """docs/experiments.md: (parameters, billions of multiply-adds) by the config's name."""
    rows = re.findall(
        r"^\| `(\S+)` \|[^|]*\| ([\d,]+) \| ([\d,.]+) \|",
        (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: (int(parameters.replace(",", "")), float(work.replace(",", ""))) for name, parameters, work in rows}


def without_repetition(key):
    """Runs a check once for all experiments for which `key(experiment)` is the same."""

    def decorate(check):
        results = {}

        def run(experiment):
            known = key(experiment)
            if known not in results:
                results[known] = check(experiment)
            return results[known]

        return run

    return decorate


def network_key(experiment) -> tuple:
    """Equal for experiments with the same network."""
    task = tasks.task_of(experiment, for_training=True)
    return experiment.task, repr(task.variant), task.dataset_info.class_order


def network_and_crop_key(experiment) -> tuple:
    """Equal for experiments with the same network on images of the same size."""
    from maxdl_tf.tasks.base import crop_size

    return (*network_key(experiment), *(crop_size(dataset) for dataset in datasets_of(experiment)))


def step_key(experiment) -> tuple:
    """Equal for experiments with the same graph of a training step, but for numbers in it."""
    loss, optimizer, dataset = experiment.loss, experiment.training.optimizer, experiment.train_dataset
    terms = [(field.name, getattr(loss, field.name)) for field in loss.DESCRIPTOR.fields]
    kind = (optimizer.kind, optimizer.weight_decay > 0, optimizer.warmup_steps > 0)
    sizes = (dataset.batch_size, dataset.max_things, experiment.model.sync_batch_norm)
    return (*network_and_crop_key(experiment), *terms, *kind, *sizes)


def build_network(experiment):
    """The model, without memory for its weights."""
    from tests.abstract_variables import abstract_variables

    with abstract_variables():
        return tasks.task_of(experiment).build_model()


def batch_spec(experiment):
    """Types and shapes of what the input pipeline gives."""
    import tensorflow as tf

    from maxdl_tf.data.classification import ClassificationBatch
    from maxdl_tf.data.panoptic import TrainBatch
    from maxdl_tf.structs import PanopticTargets
    from maxdl_tf.tasks.base import crop_size

    dataset = experiment.train_dataset
    batch, size = dataset.batch_size, crop_size(dataset)
    images, image_ids = tf.TensorSpec([batch, *size, 3]), tf.TensorSpec([batch], tf.string)
    if experiment.task == experiment_pb2.Experiment.classification:
        return ClassificationBatch(images, tf.TensorSpec([batch], tf.int32), image_ids)
    targets = PanopticTargets(
        semantic=tf.TensorSpec([batch, *size], tf.int32),
        semantic_weight=tf.TensorSpec([batch, *size]),
        thing_id_mask=tf.TensorSpec([batch, *size], tf.int32),
        thing_id_class=tf.TensorSpec([batch, dataset.max_things], tf.int32),
    )
    return TrainBatch(images, targets, image_ids)


@without_repetition(step_key)
def unmoved_by_a_step(experiment) -> list[str]:
    """Traces a training step; names of variables of the model and slots of the optimizers that it does not write."""
    import tensorflow as tf

    from maxdl_tf.tasks import run
    from tests.abstract_variables import abstract_variables

    task = tasks.task_of(experiment, for_training=True)
    with abstract_variables():
        state = run.build_state(task, tf.distribute.get_strategy())
        trainer = run.build_trainer(task, state, batches=None)
        model, optimizers = state.model, state.optimizers

        def replica_step(batch):
            losses, gradients, *_ = trainer.forward_backward(batch)
            trainer.apply_gradients(losses, gradients)

        step = tf.function(replica_step, autograph=False).get_concrete_function(batch_spec(experiment))
    written = {
        id(outside)
        for outside, inside in step.graph.captures
        if any("Assign" in use.type or "Apply" in use.type for use in inside.consumers())
    }
    # An optimizer without variables, where nothing is pretrained, does not count its steps.
    both = (optimizers.base, optimizers.backbone)
    idle = {id(optimizer.iterations) for optimizer in both if len(optimizer.weights) == 1}
    if optimizers.loss_scale:  # Is changed outside of replicas; tests/training/test_loss_scale.py sees to it.
        idle |= {id(variable) for variable in optimizers.loss_scale.variables}
    variables = [*model.variables, *(slot for slot in optimizers.slot_variables if id(slot) not in idle)]
    return [variable.name for variable in variables if id(variable.handle) not in written]


def check_step(path):
    experiment = load(path)
    if experiment.training.optimizer.kind == training_pb2.OptimizerOptions.radam_lookahead:
        pytest.importorskip("tensorflow_addons")
    assert unmoved_by_a_step(experiment) == []


@pytest.mark.parametrize("name", TRACED_QUICKLY)
def test_a_step_moves_every_variable(name):
    check_step(CONFIGS[NAMES.index(name)])


@pytest.mark.slow
@every_config
def test_the_step_of_every_experiment_moves_every_variable(path):
    check_step(path)


def test_the_table_has_a_row_for_each_experiment():
    assert sorted(table_of_experiments()) == sorted(NAMES)


@without_repetition(network_key)
def parameters(experiment) -> int:
    from maxdl_tf.models import complexity

    return complexity.parameters_without_semantic(build_network(experiment))


@pytest.mark.parametrize(
    "name", [name if name in BUILT_QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_the_network_is_as_large_as_the_table_says(name):
    assert parameters(load(CONFIGS[NAMES.index(name)])) == table_of_experiments()[name][0]


def test_rows_of_one_network_have_one_number():
    """So that the quick test holds all rows of S, and the slow ones need one of each."""
    numbers: dict[tuple, set] = {}
    for name, path in zip(NAMES, CONFIGS):
        numbers.setdefault(network_key(load(path)), set()).add(table_of_experiments()[name][0])
    assert len(numbers) < len(NAMES) and {len(found) for found in numbers.values()} == {1}


@every_config
def test_instances_can_be_numbered_by_their_slots(path):
    experiment = load(path)
    if experiment.task == experiment_pb2.Experiment.panoptic:
        variant = tasks.task_of(experiment).variant
        assert variant.num_slots < class_table.of_dataset(experiment.train_dataset).label_divisor


@without_repetition(network_and_crop_key)
def count(experiment):
    from maxdl_tf.models import complexity

    task = tasks.task_of(experiment)
    return complexity.measure(task.build_model, task.crop_size)


@pytest.mark.slow
@every_config
def test_the_network_multiplies_as_often_as_the_table_says(path):
    work = count(load(path)).multiply_adds_without_semantic / 1e9
    in_table = table_of_experiments()[NAMES[CONFIGS.index(path)]][1]
    assert round(work, 1 if work >= 1 else 2) == in_table


def table_of_models() -> dict[str, tuple[float, ...]]:
    """docs/models.md: parameters without and with the semantic branch, billions of multiply-adds at `CROPS`."""
    text = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\|" + r" ([\d,.]+) \|" * 5, text, re.MULTILINE)
    return {name: tuple(float(number.replace(",", "")) for number in numbers) for name, *numbers in rows}


def test_the_table_of_models_has_a_row_for_each_variant():
    assert list(table_of_models()) == list(VARIANTS)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_models_are_as_large_and_multiply_as_often_as_their_table_says(variant):
    from maxdl_tf.models import complexity

    experiment = load(REPOSITORY / "configs" / "coco" / "max_deeplab_s_641_100k.textproto")
    experiment.model.variant = variant
    task = tasks.task_of(experiment)
    at_crops = [complexity.measure(task.build_model, (crop, crop)) for crop in CROPS]
    work = (size.multiply_adds_without_semantic / 1e9 for size in at_crops)
    sizes = at_crops[0].parameters_without_semantic, at_crops[0].parameters
    assert (*sizes, *(round(value, 1 if value >= 1 else 2) for value in work)) == table_of_models()[variant]
