"""Why a mask of the network is no segment of the prediction: which threshold took it, and how many pixels with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.inference.predictor import Prediction
from maxdl_tf.models.mask_competition import STRIDE, MaskCompetition
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs


class Loss(NamedTuple):
    """What one step took away.

    Attributes:
      masks: Those that lost all their pixels by it (for min_score: segments).
      pixels: Of the image, that became void by it.
    """

    masks: int = 0
    pixels: int = 0


class Diagnosis(NamedTuple):
    """What became of an image's masks, or of those of several images.

    A mask is a slot of the network that is the best one of all slots in at least a pixel.

    Attributes:
      masks: All of them.
      pixels: Of the image; each belongs to one mask.
      no_object: Masks that the network itself calls void, pixels included.
      class_threshold: Masks that may be of a class, but with less than that probability.
      pixel_threshold: Pixels that are of no kept mask with more than that probability.
      thing_area_limit: Things that are too small.
      stuff_area_limit: Masks of stuff classes that are too small.
      min_score: Segments whose score is too low.
      segments: What is left; the masks of a stuff class make one segment.
      segment_pixels: What is left.
    """

    masks: int
    pixels: int
    no_object: Loss
    class_threshold: Loss
    pixel_threshold: Loss
    thing_area_limit: Loss
    stuff_area_limit: Loss
    min_score: Loss
    segments: int
    segment_pixels: int


REASONS = ("no_object", "class_threshold", "pixel_threshold", "thing_area_limit", "stuff_area_limit", "min_score")
_NO_OBJECT, _CLASS, _PIXEL, _THING_AREA, _STUFF_AREA = range(1, 6)  # Places in REASONS, from 1; 0 is none.


def diagnose(
    outputs: PanopticOutputs,
    postprocessor: Postprocessor,
    image_size: tuple[int, int],
    prediction: Prediction,
    kept: Prediction,
) -> Diagnosis:
    """Follows the masks of one image through the post-processing.

    Args:
      outputs: The network's, batch 1, for the image.
      postprocessor: With which the prediction was made.
      image_size: (height, width) of the image.
      prediction: Its prediction, and
      kept: the same after `drop_unsure_segments`.
    """
    slot, reason, mask_reason = _slots_and_reasons(outputs, postprocessor, image_size)
    slot, reason = (transforms.resize_labels(field, image_size).numpy() for field in (slot, reason))
    num_slots = len(mask_reason)
    names = ("kept", *REASONS)
    pixels = np.bincount(reason.ravel(), minlength=len(names))
    owned = np.bincount(slot.ravel(), minlength=num_slots)
    left = np.bincount(slot[reason == 0], minlength=num_slots)
    masks = np.bincount(mask_reason.numpy()[(owned > 0) & (left == 0)], minlength=len(names))
    unsure = {segment.id for segment in prediction.segments} - {segment.id for segment in kept.segments}
    unsure_pixels = sum(segment.area for segment in prediction.segments if segment.id in unsure)
    losses = {name: Loss(int(masks[place]), int(pixels[place])) for place, name in enumerate(names) if place}
    losses["min_score"] = Loss(len(unsure), unsure_pixels)
    return Diagnosis(
        masks=int((owned > 0).sum()),
        pixels=image_size[0] * image_size[1],
        segments=len(kept.segments),
        segment_pixels=sum(segment.area for segment in kept.segments),
        **losses,
    )


def total(diagnoses: Sequence[Diagnosis]) -> Diagnosis:
    """Of several images together."""

    def added(name):
        values = [getattr(diagnosis, name) for diagnosis in diagnoses]
        return Loss(*(sum(column) for column in zip(*values, Loss()))) if name in REASONS else sum(values)

    return Diagnosis(*(added(name) for name in Diagnosis._fields))


def as_dictionary(diagnosis: Diagnosis) -> dict:
    """As it is written into JSON."""
    return {name: value._asdict() if isinstance(value, Loss) else value for name, value in diagnosis._asdict().items()}


def table(diagnosis: Diagnosis, settings: dict[str, float]) -> str:
    """For people: a line for each reason; `settings` has the thresholds by name."""

    def row(title, masks, pixels):
        return f"{title:<40} {masks:>9,} {100 * pixels / max(diagnosis.pixels, 1):>8.1f} %"

    lines = [
        f"{'':<40} {'masks':>9} {'pixels':>10}",
        row("best in at least a pixel", diagnosis.masks, diagnosis.pixels),
    ]
    for name in REASONS:
        loss = getattr(diagnosis, name)
        title = "void by the network itself" if name == "no_object" else f"{name} {settings[name]:g}"
        lines.append(row(f"- {title}", -loss.masks, -loss.pixels))
    lines.append(row("segments", diagnosis.segments, diagnosis.segment_pixels))
    return "\n".join(lines)


def _slots_and_reasons(outputs: PanopticOutputs, postprocessor: Postprocessor, image_size: tuple[int, int]):
    """The mask of each pixel and why it is void, in the image's part of the crop; and why a mask has no pixel left.

    Returns:
      int32 [h, w], int32 [h, w] and int32 [slots]; reasons as places in `REASONS`, from 1; 0 is none.
    """
    crop_size = tuple(STRIDE * (side - 1) + 1 for side in outputs.mask_logits.shape[1:3])
    visible = tf.unstack(transforms.resized_size(image_size, crop_size))
    thresholds = postprocessor.thresholds
    mask_logits = tf.cast(outputs.mask_logits, tf.float32)[0]
    probability = tf.nn.softmax(tf.cast(outputs.class_logits, tf.float32)[0])
    confidence = tf.reduce_max(probability[:, :-1], axis=-1)
    is_kept = confidence >= thresholds["class_threshold"]

    best = MaskCompetition(mask_logits, tf.ones_like(is_kept)).winners(*visible).slot
    winners = MaskCompetition(mask_logits, is_kept).winners(*visible)
    slot_map = postprocessor.read_image(outputs, crop_size, visible)
    slot = tf.where(winners.won, winners.slot, best)
    accepted = winners.won & (winners.confidence > thresholds["pixel_threshold"])

    area = tf.math.bincount(slot[accepted], minlength=is_kept.shape[0])
    dropped = tf.where(probability[:, -1] > confidence, _NO_OBJECT, _CLASS)
    is_thing = tf.argmax(probability[:, :-1], axis=-1) < len(postprocessor.dataset_info.thing_ids)
    too_small = tf.where(is_thing, _THING_AREA, _STUFF_AREA)
    mask_reason = tf.where(is_kept, tf.where(area > 0, too_small, _PIXEL), dropped)
    void_reason = tf.where(winners.won & ~accepted, _PIXEL, tf.gather(mask_reason, slot))
    return slot, tf.where(slot_map.slot >= 0, 0, void_reason), mask_reason
