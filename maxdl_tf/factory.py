"""The only code that turns options into objects; for `task: classification`, with classification_factory.py.

Everything built here takes plain arguments; nothing below this file has seen a proto.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message

from maxdl_tf import class_table
from maxdl_tf.checkpoints.save_restore import load_model_weights
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import classification, pipeline, record_streams, transforms
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.model_images import EvaluatedImage, Evaluator, PanopticImages, Result, panoptic_quality
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.segmenter import without_semantic_branch
from maxdl_tf.layers.precision import computing_in
from maxdl_tf.losses import assignment
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.models.build import build_max_deeplab
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.models.variants import VARIANTS, Variant
from maxdl_tf.protos import dataset_pb2, experiment_pb2, loss_pb2, model_pb2, training_pb2
from maxdl_tf.training.loss_scale import LossScale
from maxdl_tf.training.optimizers import CreateOptimizer, Optimizers, PolySchedule, adam, radam_lookahead


def crop_size(options: dataset_pb2.DatasetOptions) -> tuple[int, int]:
    """(height, width) in pixels of the network's input."""
    return options.crop_size[0], options.crop_size[-1]


def inference_dataset(experiment: experiment_pb2.Experiment) -> dataset_pb2.DatasetOptions:
    """The data set whose crop and class table hold outside training: eval_dataset, or the only one there is."""
    for name in ("eval_dataset", "train_dataset"):
        if experiment.HasField(name):
            return getattr(experiment, name)
    raise UserError(f"experiment {experiment.name!r} has neither train_dataset nor eval_dataset; write one of them")


def training_dataset(experiment: experiment_pb2.Experiment) -> dataset_pb2.DatasetOptions:
    """The data set for whose crop the model is made: train_dataset, or the only one there is."""
    return experiment.train_dataset if experiment.HasField("train_dataset") else inference_dataset(experiment)


def build_variant(options: model_pb2.ModelOptions) -> Variant:
    """The row of the variant table that `options` names, with what departs from it."""
    if options.variant not in VARIANTS:
        raise UserError(f"model.variant {options.variant!r} is not one of {', '.join(VARIANTS)}; name one of these")
    attention, decoder, width = options.attention, options.decoder, options.width
    departures = {
        "memory_to_pixel": attention.memory_to_pixel,
        "memory_to_memory": attention.memory_to_memory,
        "pixel_to_memory": attention.pixel_to_memory,
        "semantic_branch": options.semantic_branch,
        "recompute": model_pb2.ModelOptions.Recompute.Name(options.recompute),
        **_set_fields(options, "num_slots", "mask_channels", "drop_path_keep"),
        **{f"decoder_{name}": value for name, value in _set_fields(decoder, "stacks", "blocks").items()},
        **_set_fields(decoder, "pretrained_stacks"),
        **_set_fields(
            width,
            "memory_channels",
            "transformer_width",
            "ffn_channels",
            "memory_head_channels",
            "pixel_head_channels",
            "semantic_head_channels",
            "semantic_decoder_channels",
        ),
    }
    if not attention.pixel_to_pixel:
        departures["pixel_to_pixel"] = "convolution"
    if decoder.transformer_strides:
        departures["decoder_transformer_strides"] = tuple(decoder.transformer_strides)
    if width.semantic_low_level_channels:
        departures["semantic_low_level_channels"] = tuple(width.semantic_low_level_channels)
    variant = VARIANTS[options.variant].scaled(width.multiplier, width.stem_multiplier)
    return dataclasses.replace(variant, **departures)


def _set_fields(options: Message, *names: str) -> dict[str, int | float]:
    """Those of the named fields that are set."""
    return {name: getattr(options, name) for name in names if options.HasField(name)}


def build_model(
    experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo, *, for_training: bool = False
) -> MaXDeepLab:
    """The network with initial weights; its variables exist.

    Args:
      experiment: Says which.
      dataset_info: The class table.
      for_training: Compute in the precision of the training, not in float32.

    Raises:
      UserError: The experiment has another task.
    """
    if experiment.task != experiment_pb2.Experiment.panoptic:
        raise UserError(
            f"experiment {experiment.name!r} has task: classification, which only maxdl-train and maxdl-eval know; "
            "name a panoptic experiment, such as one that starts from its checkpoint"
        )
    options = experiment.model
    with computing_in(precision(experiment, for_training)):
        return build_max_deeplab(
            build_variant(options),
            num_classes=len(dataset_info.class_order),
            num_semantic_channels=dataset_info.num_semantic_channels,
            crop_size=crop_size(training_dataset(experiment)),
            batch_norm_momentum=options.batch_norm_momentum,
            sync_batch_norm=options.sync_batch_norm,
        )


def precision(experiment: experiment_pb2.Experiment, for_training: bool) -> str:
    """What layers compute in, a name of Keras' policies."""
    options = experiment.training
    return training_pb2.TrainingOptions.Precision.Name(options.precision) if for_training else "float32"


def build_loss(experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo) -> PanopticLoss:
    options = experiment.loss
    return PanopticLoss(
        dataset_info,
        pq_style_weight=options.pq_style_weight,
        instance_discrimination_weight=options.instance_discrimination_weight,
        mask_id_weight=options.mask_id_weight,
        semantic_weight=options.semantic_weight if experiment.model.semantic_branch else 0.0,
        positive_weight=options.positive_weight,
        temperature=options.temperature,
        pq_style=loss_pb2.LossOptions.PqStyle.Name(options.pq_style),
        negatives=options.negatives,
        # XLA cannot ask the host.
        assign=assignment.tensorflow_assign if experiment.training.jit_compile else assignment.assign,
    )


def build_postprocessor(experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo) -> Postprocessor:
    options = experiment.model.postprocess
    return Postprocessor(
        dataset_info,
        class_threshold=options.class_threshold,
        pixel_threshold=options.pixel_threshold,
        thing_area_limit=options.thing_area_limit,
        stuff_area_limit=options.stuff_area_limit,
    )


def build_predictor(experiment: experiment_pb2.Experiment, checkpoint: str | None) -> tuple[Predictor, MaXDeepLab]:
    """What predicts with an experiment's model, and that model, which lacks the auxiliary semantic branch.

    Args:
      experiment: Says which.
      checkpoint: Of its model, or a folder of them; None: random weights.

    Raises:
      UserError: The checkpoint is not there, or of another model.
    """
    options = inference_dataset(experiment)
    dataset_info = class_table.of_dataset(options)
    model = build_model(experiment, dataset_info)
    if checkpoint:
        load_model_weights(model, checkpoint)
    model = without_semantic_branch(model)
    postprocessor = build_postprocessor(experiment, dataset_info)
    return Predictor.from_model(model, postprocessor, crop_size=crop_size(options), dataset_info=dataset_info), model


def build_optimizers(experiment: experiment_pb2.Experiment, model: MaXDeepLab) -> Optimizers:
    """Optimizers of two groups: the pretrained part of the backbone learns at `backbone_multiplier` of the rate.

    With a loss scale where the training computes in float16.

    Raises:
      UserError: The kind of optimizer is not installed.
    """
    options = experiment.training.optimizer
    schedule = PolySchedule(
        options.learning_rate,
        steps=experiment.training.steps,
        warmup_steps=options.warmup_steps,
        power=options.poly_power,
    )
    return Optimizers(
        model,
        schedule,
        backbone_multiplier=options.backbone_multiplier,
        create=_create_optimizer(options),
        weight_decay=options.weight_decay,
        gradient_clip_norm=options.gradient_clip_norm,
        loss_scale=LossScale() if precision(experiment, for_training=True) == "mixed_float16" else None,
    )


def _create_optimizer(options: training_pb2.OptimizerOptions) -> CreateOptimizer:
    common = {"beta1": options.beta1, "beta2": options.beta2, "epsilon": options.epsilon}
    lookahead = {"steps": options.lookahead_steps, "step_size": options.lookahead_step_size}
    if options.kind == training_pb2.OptimizerOptions.radam_lookahead:
        return radam_lookahead(**common, **lookahead)
    return adam(**common)


def build_train_batches(
    experiment: experiment_pb2.Experiment,
    dataset_info: DatasetInfo,
    input_context: tf.distribute.InputContext | None = None,
    service: record_streams.DataService | None = None,
) -> tf.data.Dataset:
    """Endless batches of `TrainBatch`; in a distributed run, this input pipeline's share of them."""
    options = experiment.train_dataset
    return pipeline.train_batches(
        list(options.file_pattern),
        dataset_info,
        crop_size=crop_size(options),
        augmentation=build_augmentation(options.augmentation),
        small_instance_weight=options.small_instance_weight,
        small_instance_area=options.small_instance_area,
        max_things=options.max_things,
        **stream_arguments(experiment, input_context, service),
    )


def stream_arguments(
    experiment: experiment_pb2.Experiment,
    input_context: tf.distribute.InputContext | None,
    service: record_streams.DataService | None,
) -> dict[str, Any]:
    """How train_dataset is read, whatever the task: arguments of `record_streams.endless_batches`."""
    options = experiment.train_dataset
    context = input_context or tf.distribute.InputContext()
    return {
        "batch_size": context.get_per_replica_batch_size(options.batch_size) // experiment.training.accumulate_steps,
        "shuffle_buffer": options.shuffle_buffer,
        "cache": options.cache,
        "seed": experiment.training.seed if experiment.training.HasField("seed") else None,
        "shard_count": context.num_input_pipelines,
        "shard_index": context.input_pipeline_id,
        "skip_damaged": skips_damaged(options),
        "service": service,
    }


def skips_damaged(options: dataset_pb2.DatasetOptions) -> bool:
    """Whether damaged records are left out; otherwise they end the run."""
    return options.on_damaged_record == dataset_pb2.DatasetOptions.SKIP


def naming_bad_records(
    experiment: experiment_pb2.Experiment, *datasets: dataset_pb2.DatasetOptions
) -> contextlib.AbstractContextManager[None]:
    """Inside of it, a record of these data sets that ends the run is a `UserError` that names it."""
    is_panoptic = experiment.task == experiment_pb2.Experiment.panoptic
    read = pipeline.read_example if is_panoptic else classification.read_example
    dataset_info = class_table.of_dataset(datasets[0])

    def parse(serialized: tf.Tensor) -> None:
        read(serialized, dataset_info)

    patterns = [pattern for options in datasets for pattern in options.file_pattern]
    return record_streams.naming_bad_records(lambda: record_streams.matching_files(patterns), parse)


def build_evaluation_batches(experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo) -> tf.data.Dataset:
    """`EvaluationBatch`es of all images, or of the first `evaluation.max_images`, once."""
    options = experiment.eval_dataset
    return pipeline.evaluation_batches(
        list(options.file_pattern),
        dataset_info,
        crop_size=crop_size(options),
        batch_size=options.batch_size,
        max_images=experiment.evaluation.max_images or None,
        skip_damaged=skips_damaged(options),
    )


def build_evaluator(
    experiment: experiment_pb2.Experiment,
    dataset_info: DatasetInfo,
    strategy: tf.distribute.Strategy,
    model: MaXDeepLab,
    *,
    show_picture: Callable[[str, np.ndarray], None] | None = None,
    num_pictures: int = 0,
    measure: Callable[[Iterable[EvaluatedImage]], Result] | None = None,
) -> Evaluator:
    """Builds the evaluator of a model on the experiment's eval_dataset.

    Args:
      experiment: Experiment with the data set and the options of the evaluation.
      dataset_info: Class table.
      strategy: Strategy in whose scope the model was built.
      model: The network.
      show_picture: Receives the id of an image and image, truth and prediction side by side, uint8 [h, w, 3].
      num_pictures: Number of images to show, starting with the first.
      measure: Measures the images, with scores of their segments, instead of `panoptic_quality`.
    """
    images = PanopticImages(
        strategy=strategy,
        model=model,
        postprocess=build_postprocessor(experiment, dataset_info),
        batches=build_evaluation_batches(experiment, dataset_info),
        dataset_info=dataset_info,
        with_scores=measure is not None,
    )
    measure = measure or functools.partial(panoptic_quality, dataset_info=dataset_info)
    return Evaluator(images, measure, show=show_picture, num_shown=num_pictures)


def build_augmentation(options: dataset_pb2.AugmentationOptions) -> transforms.Augmentation:
    return transforms.Augmentation(
        min_scale=options.min_scale,
        max_scale=options.max_scale,
        scale_step=options.scale_step,
        flip=options.flip,
        color=options.color,
    )
