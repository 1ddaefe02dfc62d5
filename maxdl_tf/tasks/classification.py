"""Image classification, which pretrains a backbone."""

from __future__ import annotations

from maxdl_tf.data import classification
from maxdl_tf.evaluation.accuracy import ClassifiedImages, accuracy
from maxdl_tf.evaluation.model_images import Evaluator
from maxdl_tf.keras_api import computing_in
from maxdl_tf.losses.classification import ClassificationLoss
from maxdl_tf.models.build import build_image_classifier
from maxdl_tf.models.image_classifier import ImageClassifier
from maxdl_tf.protos import experiment_pb2
from maxdl_tf.tasks import base


class ClassificationTask(base.Task):
    """Trains and evaluates the pretrained part of the network with a classifier behind it."""

    kind = experiment_pb2.Experiment.classification

    def build_model(self) -> ImageClassifier:
        """Builds the pretrained part of the network with a classifier; its variables exist."""
        options = self.experiment.model
        with computing_in(self.precision), base.naming_bad_widths(self.experiment):
            return build_image_classifier(
                self.variant,
                num_classes=len(self.dataset_info.class_order),
                crop_size=base.crop_size(base.training_dataset(self.experiment)),
                batch_norm_momentum=options.batch_norm_momentum,
                sync_batch_norm=options.sync_batch_norm,
            )

    def build_loss(self, model) -> ClassificationLoss:
        """Builds the softmax cross-entropy with label smoothing."""
        del model
        return ClassificationLoss(label_smoothing=self.experiment.loss.label_smoothing)

    def build_batches(self, context=None, *, seed=None, service=None):
        """Builds endless `ClassificationBatch`es; see `Task.build_batches`."""
        options = self.experiment.train_dataset
        return classification.train_batches(
            list(options.file_pattern),
            self.dataset_info,
            crop_size=base.crop_size(options),
            augmentation=base.build_augmentation(options.augmentation),
            **self._stream_arguments(context, seed, service),
        )

    def build_evaluation(self, strategy, model, *, show_picture=None, num_pictures=0, measure=None):
        """Builds the evaluation of the accuracy and of the loss; see `Task.build_evaluation`."""
        info = self.dataset_info
        images = ClassifiedImages(
            strategy=strategy,
            model=model,
            batches=classification.evaluation_batches(
                list(self.experiment.eval_dataset.file_pattern), info, **self._evaluation_arguments()
            ),
            class_names=[info.by_id[class_id].name for class_id in info.class_order],
            loss=self.build_loss(model),
        )
        return Evaluator(images, measure or accuracy, show=show_picture, num_shown=num_pictures)

    def read_example(self, serialized):
        """Decodes a classified image and checks its class."""
        return classification.read_example(serialized, self.dataset_info)
