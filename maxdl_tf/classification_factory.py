"""Turns options into objects for `task: classification`; what does not depend on the task is in factory.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from maxdl_tf import factory
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import classification, record_streams
from maxdl_tf.evaluation.accuracy import ClassifiedImage, ClassifiedImages, accuracy
from maxdl_tf.evaluation.model_images import Evaluator, Result
from maxdl_tf.layers.precision import computing_in
from maxdl_tf.losses.classification import ClassificationLoss
from maxdl_tf.models.build import build_image_classifier
from maxdl_tf.models.image_classifier import ImageClassifier
from maxdl_tf.protos import experiment_pb2


def build_model(
    experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo, *, for_training: bool = False
) -> ImageClassifier:
    """The pretrained part of the network with a classifier and initial weights; see `factory.build_model`."""
    options = experiment.model
    with computing_in(factory.precision(experiment, for_training)):
        return build_image_classifier(
            factory.build_variant(options),
            num_classes=len(dataset_info.class_order),
            crop_size=factory.crop_size(factory.training_dataset(experiment)),
            batch_norm_momentum=options.batch_norm_momentum,
            sync_batch_norm=options.sync_batch_norm,
        )


def build_loss(experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo) -> ClassificationLoss:
    del dataset_info
    return ClassificationLoss(label_smoothing=experiment.loss.label_smoothing)


def build_train_batches(
    experiment: experiment_pb2.Experiment,
    dataset_info: DatasetInfo,
    input_context: tf.distribute.InputContext | None = None,
    service: record_streams.DataService | None = None,
) -> tf.data.Dataset:
    """Endless `ClassificationBatch`es; in a distributed run, this input pipeline's share of them."""
    options = experiment.train_dataset
    return classification.train_batches(
        list(options.file_pattern),
        dataset_info,
        crop_size=factory.crop_size(options),
        augmentation=factory.build_augmentation(options.augmentation),
        **factory.stream_arguments(experiment, input_context, service),
    )


def build_evaluator(
    experiment: experiment_pb2.Experiment,
    dataset_info: DatasetInfo,
    strategy: tf.distribute.Strategy,
    model: ImageClassifier,
    *,
    show_picture: Callable[[str, np.ndarray], None] | None = None,
    num_pictures: int = 0,
    measure: Callable[[Iterable[ClassifiedImage]], Result] | None = None,
) -> Evaluator:
    """Builds the evaluator of a model on the experiment's eval_dataset; see `factory.build_evaluator`."""
    options = experiment.eval_dataset
    images = ClassifiedImages(
        strategy=strategy,
        model=model,
        batches=classification.evaluation_batches(
            list(options.file_pattern),
            dataset_info,
            crop_size=factory.crop_size(options),
            batch_size=options.batch_size,
            max_images=experiment.evaluation.max_images or None,
            skip_damaged=factory.skips_damaged(options),
        ),
        class_names=[dataset_info.by_id[class_id].name for class_id in dataset_info.class_order],
    )
    return Evaluator(images, measure or accuracy, show=show_picture, num_shown=num_pictures)
