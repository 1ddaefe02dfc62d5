"""Counts what each rule of the post-processing removed from a prediction."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.evaluation.diagnosis import Diagnosis, Removed, count_masks
from maxdl_tf.inference.prediction import Prediction
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs


def diagnose(
    outputs: PanopticOutputs,
    postprocessor: Postprocessor,
    prediction: Prediction,
    kept: Prediction,
) -> Diagnosis:
    """Counts what each rule removed from one image.

    Args:
      outputs: Outputs of the network for the image, batch 1.
      postprocessor: The one that made the prediction.
      prediction: Prediction of the image.
      kept: The same prediction after `Prediction.without_unsure_segments`.
    """
    image_size = prediction.label_map.shape
    crop_size = postprocessor.input_size(outputs.mask_logits)
    visible = tf.unstack(transforms.resized_size(image_size, crop_size, postprocessor.enlarge))
    slot_map = postprocessor.slot_map(outputs, visible)
    slot, reason = (
        transforms.resize_labels(field, image_size).numpy() for field in (slot_map.slot, slot_map.void_reason)
    )
    kept_ids = {segment.id for segment in kept.segments}
    unsure = [segment.area for segment in prediction.segments if segment.id not in kept_ids]
    owned = reason == 0
    pairs = np.unique(np.stack([slot[owned], prediction.label_map[owned]]), axis=1)
    return count_masks(
        slot,
        reason,
        segments=len(kept_ids),
        further_parts=pairs.shape[1] - len(np.unique(pairs[0])),  # A slot of stuff has one label.
        min_score=Removed(len(unsure), sum(unsure)),
    )
