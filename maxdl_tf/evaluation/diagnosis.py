"""What became of the network's masks: which rule of the post-processing took masks and pixels away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.structs import VOID_REASONS

REASONS = (*VOID_REASONS, "min_score")


class Removed(NamedTuple):
    """What one rule removed.

    Attributes:
      masks: Masks that it left without a pixel (for min_score: segments).
      pixels: Pixels of the image that it made void.
    """

    masks: int = 0
    pixels: int = 0


_NONE = Removed()
_SPLIT = "split_min_area"


class Diagnosis(NamedTuple):
    """The masks of one image, or of several images together, and the rules that removed them.

    A mask here is a slot of the network that owns a pixel, or wins a void pixel against all other slots.

    Attributes:
      masks: Number of masks.
      pixels: Number of pixels; each belongs to one mask.
      no_object: Removed because void is more probable than any class of the slot.
      class_threshold: Removed because the slot's best class is less probable than the threshold.
      pixel_threshold: Removed because the pixel is at most this probable in its mask.
      overlap_threshold: Removed because better masks leave too little of the mask. Mask-wise post-processing only.
      thing_area_limit: Removed with things that are too small.
      stuff_area_limit: Removed with stuff classes that are too small.
      split_min_area: Removed with parts of things that are too small, or too many for `label_divisor`. Only if things
        are split.
      further_parts: Parts that were added to the masks of things by splitting them, from the second part on.
      min_score: Removed with segments whose score is too low.
      segments: Segments that remain; the masks of a stuff class make one segment.
      segment_pixels: Pixels that remain.
    """

    masks: int
    pixels: int
    no_object: Removed
    class_threshold: Removed
    pixel_threshold: Removed
    overlap_threshold: Removed
    thing_area_limit: Removed
    stuff_area_limit: Removed
    split_min_area: Removed
    further_parts: int
    min_score: Removed
    segments: int
    segment_pixels: int


def count_masks(
    slot: np.ndarray, void_reason: np.ndarray, *, segments: int, further_parts: int = 0, min_score: Removed = _NONE
) -> Diagnosis:
    """Counts what each rule removed from one image.

    Args:
      slot: int [h, w], the slot that wins each pixel.
      void_reason: int [h, w], see `PanopticPrediction.void_reason`.
      segments: Number of segments that remain.
      further_parts: See `Diagnosis`.
      min_score: Segments that were removed because of their score.
    """
    num_reasons = len(VOID_REASONS) + 1
    num_slots = int(slot.max(initial=-1)) + 1
    counts = np.bincount(num_reasons * slot.ravel() + void_reason.ravel(), minlength=num_reasons * num_slots)
    counts = counts.reshape(-1, num_reasons)  # [slots, reasons]; the first column counts pixels that are not void.
    # The last rule that applied to a mask without remaining pixels removed it.
    last_reason = num_reasons - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)
    removed = {
        name: Removed(int(((counts[:, 0] == 0) & (counts[:, place] > 0) & (last_reason == place)).sum()), int(pixels))
        for place, (name, pixels) in enumerate(zip(VOID_REASONS, counts.sum(axis=0)[1:]), start=1)
    }
    return Diagnosis(
        masks=int(counts.any(axis=1).sum()),
        pixels=slot.size,
        **removed,
        further_parts=further_parts,
        min_score=min_score,
        segments=segments,
        segment_pixels=int(counts[:, 0].sum()) - min_score.pixels,
    )


def total(diagnoses: Sequence[Diagnosis]) -> Diagnosis:
    """The sum over several images."""

    def added(name):
        values = [getattr(diagnosis, name) for diagnosis in diagnoses]
        return Removed(*(sum(column) for column in zip(*values, Removed()))) if name in REASONS else sum(values)

    return Diagnosis(*(added(name) for name in Diagnosis._fields))


def as_dictionary(diagnosis: Diagnosis, settings: Mapping[str, float]) -> dict:
    """The content of the JSON file; `settings` as in `as_table`."""
    unused = set(REASONS) - set(_rules(settings)) | ({"further_parts"} if _SPLIT not in settings else set())
    return {
        name: value._asdict() if isinstance(value, Removed) else value
        for name, value in diagnosis._asdict().items()
        if name not in unused
    }


def as_table(diagnosis: Diagnosis, settings: Mapping[str, float]) -> str:
    """A human-readable table with one line for each reason; `settings` holds the thresholds by name."""

    def row(title, masks, pixels):
        return f"{title:<40} {masks:>9,} {100 * pixels / max(diagnosis.pixels, 1):>8.1f} %"

    lines = [
        f"{'':<40} {'masks':>9} {'pixels':>10}",
        row("best in at least a pixel", diagnosis.masks, diagnosis.pixels),
    ]
    for name in _rules(settings):
        removed = getattr(diagnosis, name)
        lines.append(row(f"- {_title(name, settings)}", -removed.masks, -removed.pixels))
        if name == _SPLIT:
            lines.append(row("+ further parts of things", diagnosis.further_parts, 0))
    lines.append(row("segments", diagnosis.segments, diagnosis.segment_pixels))
    return "\n".join(lines)


def as_line(diagnosis: Diagnosis, settings: Mapping[str, float]) -> str:
    """The rules that removed masks in one human-readable line, with advice; `settings` as in `as_table`."""
    masks_of = {name: getattr(diagnosis, name).masks for name in REASONS}
    found = sorted((name for name in REASONS if masks_of[name]), key=lambda name: -masks_of[name])
    parts = [f"{diagnosis.masks:,} masks of the network in all classes"]
    for name in found:
        verb = "" if name == "no_object" else "removed by "
        parts.append(f"{masks_of[name]:,} {verb}{_title(name, settings)}")
    thresholds = [name for name in found if name not in ("no_object", "min_score")]
    option = "split_things { min_area }" if thresholds[:1] == [_SPLIT] else "".join(thresholds[:1])
    lower = f" or lower model {{ postprocess {{ {option} }} }}" if thresholds else ""
    return f"{', '.join(parts)}; {diagnosis.segments:,} segments left. Train longer{lower}"


def _rules(settings: Mapping[str, float]) -> list[str]:
    """The reasons that these settings give."""
    return [name for name in REASONS if name == "no_object" or name in settings]


def _title(name: str, settings: Mapping[str, float]) -> str:
    if name == "no_object":
        return "void by the network itself"
    stuff = f" (stuff {settings[f'stuff_{name}']:g})" if f"stuff_{name}" in settings else ""
    return f"{name} {settings[name]:g}{stuff}"
