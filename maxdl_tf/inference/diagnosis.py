"""What became of the network's masks: which rule of the post-processing took masks and pixels away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.inference.prediction import Prediction
from maxdl_tf.layers.resize import input_size
from maxdl_tf.models.postprocess import VOID_REASONS, Postprocessor
from maxdl_tf.structs import PanopticOutputs

REASONS = (*VOID_REASONS, "min_score")


class Removed(NamedTuple):
    """What one rule removed.

    Attributes:
      masks: Masks that it left without a pixel (for min_score: segments).
      pixels: Pixels of the image that it made void.
    """

    masks: int = 0
    pixels: int = 0


class Diagnosis(NamedTuple):
    """The masks of one image, or of several images together, and the rules that removed them.

    A mask here is a slot of the network that wins at least one pixel against all other slots.

    Attributes:
      masks: Number of masks.
      pixels: Number of pixels; each belongs to one mask.
      no_object: Removed because void is more probable than any class of the slot.
      class_threshold: Removed because the slot's best class is less probable than the threshold.
      pixel_threshold: Removed because the pixel is at most this probable in its mask.
      thing_area_limit: Removed with things that are too small.
      stuff_area_limit: Removed with stuff classes that are too small.
      min_score: Removed with segments whose score is too low.
      segments: Segments that remain; the masks of a stuff class make one segment.
      segment_pixels: Pixels that remain.
    """

    masks: int
    pixels: int
    no_object: Removed
    class_threshold: Removed
    pixel_threshold: Removed
    thing_area_limit: Removed
    stuff_area_limit: Removed
    min_score: Removed
    segments: int
    segment_pixels: int


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
    visible = tf.unstack(transforms.resized_size(image_size, input_size(outputs.mask_logits)))
    slot_map = postprocessor.slot_map(outputs, visible)
    slot, reason = (
        transforms.resize_labels(field, image_size).numpy().ravel() for field in (slot_map.slot, slot_map.void_reason)
    )
    num_reasons = len(VOID_REASONS) + 1
    pixels = np.bincount(num_reasons * slot + reason, minlength=num_reasons * slot_map.label.shape[0])
    pixels = pixels.reshape(-1, num_reasons)  # [slots, reasons]; the first column counts pixels that are not void.
    # The last rule that applied to a mask without remaining pixels removed it.
    last_reason = num_reasons - 1 - np.argmax(pixels[:, ::-1] > 0, axis=1)
    removed = {
        name: Removed(int(((pixels[:, 0] == 0) & (pixels[:, place] > 0) & (last_reason == place)).sum()), int(count))
        for place, (name, count) in enumerate(zip(VOID_REASONS, pixels.sum(axis=0)[1:]), start=1)
    }
    unsure = {segment.id for segment in prediction.segments} - {segment.id for segment in kept.segments}
    unsure_pixels = sum(segment.area for segment in prediction.segments if segment.id in unsure)
    return Diagnosis(
        masks=int(pixels.any(axis=1).sum()),
        pixels=image_size[0] * image_size[1],
        **removed,
        min_score=Removed(len(unsure), unsure_pixels),
        segments=len(kept.segments),
        segment_pixels=sum(segment.area for segment in kept.segments),
    )


def total(diagnoses: Sequence[Diagnosis]) -> Diagnosis:
    """The sum over several images."""

    def added(name):
        values = [getattr(diagnosis, name) for diagnosis in diagnoses]
        return Removed(*(sum(column) for column in zip(*values, Removed()))) if name in REASONS else sum(values)

    return Diagnosis(*(added(name) for name in Diagnosis._fields))


def as_dictionary(diagnosis: Diagnosis) -> dict:
    """The content of the JSON file."""
    return {
        name: value._asdict() if isinstance(value, Removed) else value for name, value in diagnosis._asdict().items()
    }


def table(diagnosis: Diagnosis, settings: dict[str, float]) -> str:
    """A human-readable table with one line for each reason; `settings` holds the thresholds by name."""

    def row(title, masks, pixels):
        return f"{title:<40} {masks:>9,} {100 * pixels / max(diagnosis.pixels, 1):>8.1f} %"

    lines = [
        f"{'':<40} {'masks':>9} {'pixels':>10}",
        row("best in at least a pixel", diagnosis.masks, diagnosis.pixels),
    ]
    for name in REASONS:
        removed = getattr(diagnosis, name)
        title = "void by the network itself" if name == "no_object" else f"{name} {settings[name]:g}"
        lines.append(row(f"- {title}", -removed.masks, -removed.pixels))
    lines.append(row("segments", diagnosis.segments, diagnosis.segment_pixels))
    return "\n".join(lines)
