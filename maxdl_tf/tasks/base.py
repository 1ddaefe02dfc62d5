"""The interface of a task, and what all tasks build in the same way.

Options stop here: the layers, models, losses and pipelines below take plain arguments and built objects.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message

from maxdl_tf import class_table
from maxdl_tf.checkpoints.save_restore import Restored, load_model_weights
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import record_streams, shards, transforms
from maxdl_tf.data.copy_paste import CopyPaste
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.model_images import Evaluator, Result
from maxdl_tf.files import textproto
from maxdl_tf.models.variants import VARIANTS, KMaXVariant, MaXVariant, Variant
from maxdl_tf.protos import dataset_pb2, experiment_pb2, model_pb2, training_pb2
from maxdl_tf.tasks import checks
from maxdl_tf.training.loss_scale import LossScale
from maxdl_tf.training.optimizers import CreateOptimizer, Optimizers, PolySchedule, adam, radam_lookahead

# Receives the id of an image and a picture of its evaluation, uint8 [height, width, 3].
ShowPicture = Callable[[str, np.ndarray], None]


class Task(abc.ABC):
    """What an experiment trains and evaluates: model, loss, batches and evaluation.

    Args:
      experiment: The experiment.
      for_training: Whether the model is trained. Then `dataset` is train_dataset and the model computes in
        `training.precision`. Otherwise `dataset` is eval_dataset, or train_dataset if it is the only one, and the
        model computes in float32.

    Attributes:
      kind: Value of `Experiment.task` that selects this class.

    Raises:
      UserError: The experiment has another task, or no data set.
    """

    kind: int

    def __init__(self, experiment: experiment_pb2.Experiment, *, for_training: bool = False):
        if experiment.task != self.kind:
            name = experiment_pb2.Experiment.Task.Name
            raise UserError(
                f"experiment {experiment.name!r} has task: {name(experiment.task)}, but this needs task: "
                f"{name(self.kind)}; choose another experiment"
            )
        self.experiment = experiment
        self.for_training = for_training
        self._dataset_name = (_training_dataset if for_training else _inference_dataset)(experiment)
        self.dataset = getattr(experiment, self._dataset_name)

    @functools.cached_property
    def dataset_info(self) -> DatasetInfo:
        """Class table of `dataset`."""
        return class_table.of_dataset(self.dataset, self._dataset_name)

    @property
    def evaluated_info(self) -> DatasetInfo:
        """Class table of the label maps of an evaluation."""
        return self.dataset_info

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images of `dataset` at the input of the network."""
        return crop_size(self.dataset)

    @property
    def precision(self) -> str:
        """Name of the Keras policy that layers compute in."""
        options = self.experiment.training
        return training_pb2.TrainingOptions.Precision.Name(options.precision) if self.for_training else "float32"

    @property
    def variant(self) -> Variant:
        """Row of the variant table, with the experiment's departures from it."""
        return build_variant(self.experiment.model)

    @abc.abstractmethod
    def build_model(self) -> tf.Module:
        """Builds the network with initial weights; its variables exist."""

    @abc.abstractmethod
    def build_loss(self, model: tf.Module) -> Callable[[Any, Any], Any]:
        """Builds the loss, a function of the model's outputs and the targets of a batch.

        Args:
          model: The network.
        """

    @abc.abstractmethod
    def build_batches(
        self,
        context: tf.distribute.InputContext | None = None,
        *,
        seed: int | None = None,
        service: record_streams.DataService | None = None,
    ) -> tf.data.Dataset:
        """Builds endless batches of train_dataset with `images`, `targets` and `image_ids`.

        Args:
          context: Input pipeline of a distributed run; the batches are its share.
          seed: Seed of the order and the augmentation. None: different in each run.
          service: tf.data service that makes the batches.
        """

    @abc.abstractmethod
    def build_evaluation(
        self,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        *,
        show_picture: ShowPicture | None = None,
        num_pictures: int = 0,
        measure: Callable[[Iterable[Any]], Result] | None = None,
    ) -> Evaluator:
        """Builds the evaluation of a model on eval_dataset.

        Args:
          strategy: Strategy in whose scope the model was built.
          model: The network.
          show_picture: Receives pictures of the first images.
          num_pictures: Number of these pictures.
          measure: Measures the evaluated images. None: by the task's own metric.
        """

    @abc.abstractmethod
    def read_example(self, serialized: tf.Tensor) -> Any:
        """Decodes and checks a record."""

    def check_records(self, log: Callable[[str], None]) -> None:
        """Looks at the first records of train_dataset, and logs a warning if the model does not suit them."""
        del log  # By default every model does.

    def load_weights(
        self, model: tf.Module, checkpoint: str, log: Callable[[str], None] = lambda line: None
    ) -> Restored:
        """Restores a model; see `load_model_weights`.

        Raises:
          UserError: The checkpoint does not exist, does not fit, or was trained with other classes.
        """
        checks.check_classes(checkpoint, self.dataset_info)
        return load_model_weights(model, checkpoint, log)

    def build_optimizers(self, model: tf.Module) -> Optimizers:
        """Builds the optimizers. The pretrained part of the model learns at `backbone_multiplier` times the rate.

        Training in float16 also gets a loss scale.

        Raises:
          UserError: The kind of optimizer is not installed.
        """
        options = self.experiment.training.optimizer
        return Optimizers(
            model,
            build_schedule(self.experiment.training),
            backbone_multiplier=options.backbone_multiplier,
            create=_create_optimizer(options),
            weight_decay=options.weight_decay,
            gradient_clip_norm=options.gradient_clip_norm,
            loss_scale=LossScale() if self.precision == "mixed_float16" else None,
        )

    def naming_bad_records(self, *datasets: dataset_pb2.DatasetOptions) -> contextlib.AbstractContextManager[None]:
        """Turns the failure of a record of these data sets into a `UserError` that names the record."""

        def parse(serialized: tf.Tensor) -> None:
            self.read_example(serialized)

        patterns = [pattern for options in datasets for pattern in options.file_pattern]
        return record_streams.naming_bad_records(lambda: shards.find_shards(patterns), parse)

    def _stream_arguments(
        self,
        context: tf.distribute.InputContext | None,
        seed: int | None,
        service: record_streams.DataService | None,
    ) -> dict[str, Any]:
        """Arguments of `record_streams.endless_batches` for train_dataset."""
        options = self.experiment.train_dataset
        context = context or tf.distribute.InputContext()
        parts = self.experiment.training.accumulate_steps
        return {
            "batch_size": context.get_per_replica_batch_size(options.batch_size) // parts,
            "shuffle_buffer": options.shuffle_buffer,
            "cache": options.cache,
            "seed": seed,
            "shard_count": context.num_input_pipelines,
            "shard_index": context.input_pipeline_id,
            "skip_damaged": skips_damaged(options),
            "service": service,
        }

    def _evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the tasks' `evaluation_batches` for eval_dataset."""
        options = self.experiment.eval_dataset
        return {
            "crop_size": crop_size(options),
            "batch_size": options.batch_size,
            "max_images": self.experiment.evaluation.max_images or None,
            "skip_damaged": skips_damaged(options),
        }


@contextlib.contextmanager
def naming_bad_widths(experiment: experiment_pb2.Experiment) -> Iterator[None]:
    """Turns the ValueError of a layer whose widths do not fit together into a `UserError` that names the options."""
    try:
        yield
    except UserError:  # It names its cause.
        raise
    except ValueError as error:
        raise UserError(
            f"experiment {experiment.name!r}: this model cannot be built: {error}; change model.width, the "
            "options of model's decoders, or crop_size"
        ) from error


def crop_size(options: dataset_pb2.DatasetOptions) -> tuple[int, int]:
    """(height, width) in pixels of a data set's images at the input of the network."""
    return options.crop_size[0], options.crop_size[-1]


def build_schedule(options: training_pb2.TrainingOptions) -> PolySchedule:
    """The learning rate of a training at each step."""
    optimizer = options.optimizer
    return PolySchedule(
        optimizer.learning_rate,
        steps=options.steps,
        warmup_steps=optimizer.warmup_steps,
        power=optimizer.poly_power,
    )


def as_written(options: Message, name: str) -> float:
    """A number as its textproto has it: 0.7, and not the double that is nearest to a float of 0.7."""
    return float(textproto.value_text(options.DESCRIPTOR.fields_by_name[name], getattr(options, name)))


def skips_damaged(options: dataset_pb2.DatasetOptions) -> bool:
    """Whether damaged records are skipped; otherwise they end the run."""
    return options.on_damaged_record == dataset_pb2.DatasetOptions.SKIP


def _inference_dataset(experiment: experiment_pb2.Experiment) -> str:
    """Name of the data set with the crop and class table of inference: eval_dataset, or the only one."""
    for name in ("eval_dataset", "train_dataset"):
        if experiment.HasField(name):
            return name
    raise UserError(f"experiment {experiment.name!r} has neither train_dataset nor eval_dataset; add one of them")


def training_dataset(experiment: experiment_pb2.Experiment) -> dataset_pb2.DatasetOptions:
    """The data set with the crop that the model is built for: train_dataset, or the only one."""
    return getattr(experiment, _training_dataset(experiment))


def _training_dataset(experiment: experiment_pb2.Experiment) -> str:
    return "train_dataset" if experiment.HasField("train_dataset") else _inference_dataset(experiment)


def build_variant(options: model_pb2.ModelOptions) -> Variant:
    """Row of the variant table that the options name, with their departures from it."""
    if options.variant not in VARIANTS:
        raise UserError(f"model.variant {options.variant!r} is not one of {', '.join(VARIANTS)}; choose one of these")
    width = options.width
    variant = VARIANTS[options.variant].scaled(width.multiplier, width.stem_multiplier)
    departures = _departures(options)
    foreign = sorted(set(departures) - _attributes(type(variant)))
    if foreign:
        raise UserError(
            f"model.variant {options.variant!r} is a {variant.family}, which has no {_option(foreign[0])}; "
            "drop this option, or choose a variant of the other family"
        )
    return dataclasses.replace(variant, **departures)


def _departures(options: Message, prefix: str = "") -> dict[str, Any]:
    """Fields that are set, by the attributes of a variant with the same name.

    An attribute may also begin with the name of the field's message: `decoder_stacks` is `decoder { stacks }`.
    """
    attributes = _attributes(MaXVariant, KMaXVariant)
    found: dict[str, Any] = {}
    for field in options.DESCRIPTOR.fields:
        name = next((name for name in (prefix + field.name, field.name) if name in attributes), None)
        if field.message_type:
            found.update(_departures(getattr(options, field.name), f"{field.name}_"))
        elif name:
            value = getattr(options, field.name)
            if not field.has_presence:  # A repeated field.
                found.update({name: tuple(value)} if value else {})
            elif options.HasField(field.name):
                found[name] = field.enum_type.values_by_number[value].name if field.enum_type else value
    return found


def _option(attribute: str) -> str:
    """How a textproto sets an attribute of a variant: `decoder { stacks }` for `decoder_stacks`."""
    for field in model_pb2.ModelOptions.DESCRIPTOR.fields:
        inner = attribute.removeprefix(f"{field.name}_")  # Not all have the prefix.
        if field.message_type and inner in field.message_type.fields_by_name:
            return f"{field.name} {{ {inner} }}"
    return attribute


def _attributes(*kinds: type[Variant]) -> set[str]:
    return {attribute.name for kind in kinds for attribute in dataclasses.fields(kind)}


def build_augmentation(options: dataset_pb2.AugmentationOptions) -> transforms.Augmentation:
    """The random changes of training images."""
    return transforms.Augmentation(
        min_scale=options.min_scale,
        max_scale=options.max_scale,
        scale_step=options.scale_step,
        flip=options.flip,
        color=options.color,
        color_magnitude=as_written(options, "color_magnitude"),
        rotate=options.rotate,
        contrast=as_written(options, "contrast"),
        copy_paste=_build_copy_paste(options.copy_paste) if options.HasField("copy_paste") else None,
    )


def _build_copy_paste(options: dataset_pb2.CopyPasteOptions) -> CopyPaste:
    name = dataset_pb2.CopyPasteOptions.Segments.Name
    return CopyPaste(
        things=name(options.things), stuff=name(options.stuff), void=name(options.void), scale=options.scale
    )


def _create_optimizer(options: training_pb2.OptimizerOptions) -> CreateOptimizer:
    common = {"beta1": options.beta1, "beta2": options.beta2, "epsilon": options.epsilon}
    lookahead = {"steps": options.lookahead_steps, "step_size": options.lookahead_step_size}
    if options.kind == training_pb2.OptimizerOptions.radam_lookahead:
        return radam_lookahead(**common, **lookahead)
    return adam(**common)
