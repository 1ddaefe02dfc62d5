"""Panoptic segmentation (arXiv 2012.00759)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from maxdl_tf.data import panoptic
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.model_images import Evaluator, PanopticImages, panoptic_quality
from maxdl_tf.evaluation.predicted_images import PredictedImages
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.tiles import with_room_for_instances
from maxdl_tf.keras_api import computing_in
from maxdl_tf.losses import assignment
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.models.build import build_panoptic_model
from maxdl_tf.models.network import PanopticNetwork, check_sides
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.protos import dataset_pb2, experiment_pb2, loss_pb2, model_pb2, training_pb2
from maxdl_tf.tasks import base

_IMAGES_CHECKED = 100  # Before training; of the size of COCO they take about a second.


class PanopticTask(base.Task):
    """Trains, evaluates and predicts with a MaX-DeepLab or kMaX-DeepLab."""

    kind = experiment_pb2.Experiment.panoptic

    def build_model(self) -> PanopticNetwork:
        """Builds the network with initial weights; its variables exist.

        Raises:
          UserError: The network cannot be built, or has more slots than label maps can number.
        """
        options, num_slots, info = self.experiment.model, self.variant.num_slots, self.dataset_info
        if num_slots >= info.label_divisor:
            raise UserError(
                f"{num_slots} slots do not fit below label_divisor {info.label_divisor} of data set {info.name!r}, "
                f"which encodes their numbers; set model.num_slots to at most {info.label_divisor - 1}, or convert the "
                f"data by maxdl-convert with a --label_divisor above {num_slots}"
            )
        with computing_in(self.precision), base.naming_bad_widths(self.experiment):
            model = build_panoptic_model(
                self.variant,
                num_classes=len(info.class_order),
                num_semantic_channels=info.num_semantic_channels,
                crop_size=base.crop_size(base.training_dataset(self.experiment)),
                batch_norm_momentum=options.batch_norm_momentum,
                sync_batch_norm=options.sync_batch_norm,
            )
            check_sides((None, *self.crop_size, 3), model.size_multiple)  # That of evaluation may be another one.
        if self.for_training and self.experiment.training.freeze == training_pb2.TrainingOptions.backbone:
            for layer in model.pretrained_layers:
                layer.trainable = False
        return model

    def build_loss(self, model: PanopticNetwork) -> PanopticLoss:
        """Builds the loss of training (paper sections 3.2 and 3.4, architecture section 6).

        Args:
          model: The network, whose strides and auxiliary outputs the loss follows.
        """
        return self._loss(
            model,
            # XLA cannot call the host.
            assign=assignment.tensorflow_assign if self.experiment.training.jit_compile else assignment.assign,
            auxiliary_outputs=model.num_auxiliary_outputs > 0,
        )

    def _loss(self, model: PanopticNetwork, **arguments: Any) -> PanopticLoss:
        options = self.experiment.loss
        return PanopticLoss(
            self.dataset_info,
            pq_style_weight=options.pq_style_weight,
            instance_discrimination_weight=options.instance_discrimination_weight,
            pixel_contrastive_weight=options.pixel_contrastive_weight,
            pixel_contrastive_samples=options.pixel_contrastive_samples,
            pixel_contrastive_area_temperature=options.pixel_contrastive_area_temperature,
            mask_id_weight=options.mask_id_weight,
            semantic_weight=options.semantic_weight if self.experiment.model.semantic_branch else 0.0,
            semantic_top_share=options.semantic_top_share,
            positive_weight=options.positive_weight,
            temperature=options.temperature,
            pq_style=loss_pb2.LossOptions.PqStyle.Name(options.pq_style),
            negatives=options.negatives,
            output_stride=model.output_stride,
            semantic_stride=model.semantic_stride,
            **arguments,
        )

    def build_postprocessor(self, model: PanopticNetwork | None = None) -> Postprocessor:
        """Builds what turns the outputs of `model` into a panoptic map. None: of a network with masks at stride 4."""
        options = self.experiment.model.postprocess
        arguments = {
            "enlarge": self.dataset.enlarge,
            "class_threshold": base.as_written(options, "class_threshold"),
            "pixel_threshold": base.as_written(options, "pixel_threshold"),
            "thing_area_limit": options.thing_area_limit,
            "stuff_area_limit": options.stuff_area_limit,
        }
        if options.HasField("stuff_class_threshold"):
            arguments["stuff_class_threshold"] = base.as_written(options, "stuff_class_threshold")
        if options.kind == model_pb2.PostprocessOptions.mask_wise:
            for name in ("overlap_threshold", "class_exponent", "mask_exponent"):
                arguments[name] = base.as_written(options, name)
        if options.HasField("split_things"):
            split = options.split_things
            arguments["split_min_area"] = split.min_area if split.HasField("min_area") else options.thing_area_limit
            arguments["split_connectivity"] = split.connectivity
        if model is not None:
            arguments["output_stride"] = model.output_stride
        return Postprocessor(self.dataset_info, **arguments)

    def build_predictor(
        self, checkpoint: str | None, prepare: Callable[[PanopticNetwork], PanopticNetwork] = lambda model: model
    ) -> tuple[Predictor, PanopticNetwork]:
        """Builds a predictor, and its model, which lacks the auxiliary semantic branch.

        Args:
          checkpoint: Path of a checkpoint of the model, or of a folder of checkpoints. None: random weights.
          prepare: Makes the model that predicts of the restored one, such as `fold_batch_norms`.

        Raises:
          UserError: The checkpoint does not exist, or is of another model.
        """
        model = self.build_model()
        if checkpoint:
            self.load_weights(model, checkpoint)
        model = prepare(model.without_semantic_branch())
        return self._predictor(model, self.dataset), model

    def _predictor(self, model: PanopticNetwork, options: dataset_pb2.DatasetOptions) -> Predictor:
        predictor = Predictor.from_model(
            model,
            self.build_postprocessor(model),
            crop_size=base.crop_size(options),
            dataset_info=self.dataset_info,
        )
        predictor.tile, predictor.tile_overlap = options.tile, options.tile_overlap
        return predictor

    def build_batches(self, context=None, *, seed=None, service=None):
        """Builds endless `TrainBatch`es; see `Task.build_batches`."""
        options = self.experiment.train_dataset
        return panoptic.train_batches(
            list(options.file_pattern),
            self.dataset_info,
            crop_size=base.crop_size(options),
            augmentation=base.build_augmentation(options.augmentation),
            enlarge=options.enlarge,
            tile=options.tile,
            **_target_options(options),
            **self._stream_arguments(context, seed, service),
        )

    def build_evaluation_batches(self) -> tf.data.Dataset:
        """Builds one pass of `EvaluationBatch`es over eval_dataset, or over its first `evaluation.max_images`."""
        return panoptic.evaluation_batches(
            list(self.experiment.eval_dataset.file_pattern),
            self.dataset_info,
            enlarge=self.experiment.eval_dataset.enlarge,
            # Those of training, so that the losses of both compare.
            **_target_options(base.training_dataset(self.experiment)),
            **self._evaluation_arguments(),
        )

    @property
    def evaluated_info(self):
        """Class table of the label maps of an evaluation: with `eval_dataset.tile`, one for the things of all tiles."""
        return with_room_for_instances(self.dataset_info) if self.experiment.eval_dataset.tile else self.dataset_info

    def build_evaluation(self, strategy, model, *, show_picture=None, num_pictures=0, measure=None):
        """Builds the evaluation of panoptic quality and of the loss; see `Task.build_evaluation`.

        A picture shows image, truth and prediction side by side. With `measure`, segments have scores. With
        `eval_dataset.tile`, there is no loss, since the network never sees a whole image.
        """
        if self.experiment.eval_dataset.tile:
            images = self._tiled_images(strategy, model)
        else:
            images = self._resized_images(strategy, model, with_scores=measure is not None)
        measure = measure or functools.partial(
            panoptic_quality,
            dataset_info=self.evaluated_info,
            thresholds=self.build_postprocessor(model).thresholds,
        )
        return Evaluator(images, measure, show=show_picture, num_shown=num_pictures)

    def _resized_images(self, strategy, model: PanopticNetwork, with_scores: bool) -> PanopticImages:
        return PanopticImages(
            strategy=strategy,
            model=model,
            postprocess=self.build_postprocessor(model),
            batches=self.build_evaluation_batches(),
            dataset_info=self.dataset_info,
            with_scores=with_scores,
            loss=self._loss(
                model,
                # The same pixels in each evaluation.
                uniform=functools.partial(tf.random.stateless_uniform, seed=(0, 0)),
            ),
        )

    def _tiled_images(self, strategy, model: PanopticNetwork) -> PredictedImages:
        if isinstance(strategy, tf.distribute.TPUStrategy):
            raise UserError("eval_dataset.tile: a TPU does not evaluate tiles; evaluate on a CPU or GPU, or drop it")
        options = self.experiment.eval_dataset
        return PredictedImages(
            self._predictor(model.without_semantic_branch(), options).in_tiles(),
            panoptic.whole_examples(
                list(options.file_pattern),
                self.dataset_info,
                max_images=self.experiment.evaluation.max_images or None,
                skip_damaged=base.skips_damaged(options),
            ),
            truth_info=self.dataset_info,
            predicted_info=self.evaluated_info,
        )

    def check_records(self, log):
        """Warns if one of the first training images has more segments than the model has slots.

        Not if damaged records are skipped: finding them takes a pass over all files. Not for tiles, which show parts of
        the images.
        """
        options, num_slots = self.experiment.train_dataset, self.variant.num_slots
        if base.skips_damaged(options) or options.tile:
            return
        with self.naming_bad_records(options):
            most = panoptic.most_segments(
                list(options.file_pattern), self.dataset_info, _IMAGES_CHECKED, for_pasting=self._pastes
            )
        if most.count > num_slots:
            log(
                f"warning: image {most.image_id} has {most.count} segments, but model.num_slots is {num_slots}, so "
                f"some of them are neither trained nor predicted; set model.num_slots to at least {most.count}"
            )

    def read_example(self, serialized):
        """Decodes an image with its label map and checks its classes."""
        return panoptic.read_example(serialized, self.dataset_info, for_pasting=self._pastes)

    @property
    def _pastes(self) -> bool:
        return self.for_training and self.experiment.train_dataset.augmentation.HasField("copy_paste")


def _target_options(options: dataset_pb2.DatasetOptions) -> dict[str, Any]:
    """Arguments of `panoptic_targets`."""
    names = ("small_instance_weight", "small_instance_area", "max_things")
    return {name: getattr(options, name) for name in names}
