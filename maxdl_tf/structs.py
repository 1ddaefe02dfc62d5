"""What crosses a border between parts of the package has a name, and it is here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

Tensor = Any  # A tf.Tensor; TensorFlow is not imported here so that data_gen's workers stay light.


@dataclass(frozen=True)
class SegmentClass:
    """One row of a class table.

    Attributes:
      id: The id in label maps and TFRecords, at least 1.
      name: For people.
      is_thing: True if its instances are told apart, False for stuff.
      color: (red, green, blue), 0..255, for pictures.
      source_id: The id in the annotations that the data set came from (COCO: the official
        category id, 1..200), written back by predictions in COCO format.
    """

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]
    source_id: int


@dataclass(frozen=True)
class DatasetInfo:
    """A data set's class table and the numbers that its label maps are coded with.

    A pixel of a label map is `class id * label_divisor + instance`. Instances of things count from
    1; instance 0 of a thing class is a crowd; stuff always has instance 0. Pixels without a label
    are void: `ignore_label * label_divisor`.
    """

    name: str
    classes: tuple[SegmentClass, ...]
    label_divisor: int = 256
    ignore_label: int = 0

    def __post_init__(self):
        ids = [c.id for c in self.classes]
        if not ids:
            raise ValueError(f"data set {self.name!r} has no classes; list at least one")
        if len(set(ids)) != len(ids):
            repeated = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"data set {self.name!r}: class ids {repeated} occur more than once; ids must be unique")
        if min(ids) < 1:
            raise ValueError(f"data set {self.name!r}: class id {min(ids)}; ids start at 1")
        if self.ignore_label in ids:
            raise ValueError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} is also the id of a class; take another"
            )
        if self.ignore_label < 0 or self.label_divisor < 2:
            raise ValueError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} must be at least 0 and "
                f"label_divisor {self.label_divisor} at least 2"
            )

    @cached_property
    def thing_ids(self) -> tuple[int, ...]:
        """Class ids of things, ascending."""
        return tuple(sorted(c.id for c in self.classes if c.is_thing))

    @cached_property
    def stuff_ids(self) -> tuple[int, ...]:
        """Class ids of stuff, ascending."""
        return tuple(sorted(c.id for c in self.classes if not c.is_thing))

    @cached_property
    def class_order(self) -> tuple[int, ...]:
        """The class ids in the order of the class head's logits: things, then stuff (void follows)."""
        return self.thing_ids + self.stuff_ids

    @property
    def num_semantic_channels(self) -> int:
        """Channels of the auxiliary semantic head: class ids are channel numbers, void's included."""
        return max(*self.class_order, self.ignore_label) + 1

    @property
    def void(self) -> int:
        """The value of void pixels in a label map."""
        return self.ignore_label * self.label_divisor

    @cached_property
    def by_id(self) -> dict[int, SegmentClass]:
        return {c.id: c for c in self.classes}


class PanopticTargets(NamedTuple):
    """Ground truth of a batch at the size of the crop (architecture section 5).

    Attributes:
      semantic: int32 [batch, height, width], class ids; ignore_label where void. Crowd pixels keep
        their class.
      semantic_weight: float32 [batch, height, width], weight of each pixel in the semantic loss.
      thing_id_mask: int32 [batch, height, width], 0.. for the things of an image in raster order of
        their first pixel, -1 on stuff, crowd and void.
      thing_id_class: int32 [batch, max_things], class id of each of them, -1 where there is none.
    """

    semantic: Tensor
    semantic_weight: Tensor
    thing_id_mask: Tensor
    thing_id_class: Tensor


class PanopticOutputs(NamedTuple):
    """What the model says of a batch (paper section 3.2, figure 3).

    Attributes:
      pixel_feature: float [batch, height/4, width/4, channels], L2-normalised.
      mask_logits: float [batch, height/4, width/4, slots]; a softmax over slots gives the masks.
      class_logits: float [batch, slots, classes + 1], in `DatasetInfo.class_order`, void last.
      semantic_logits: float [batch, height/4, width/4, semantic channels] of the auxiliary branch;
        None where the model was built without it.
      mask_embedding: float [batch, slots, channels]; pixel features times these, scaled and shifted, are the mask
        logits. For pictures; None where nobody looks.
    """

    pixel_feature: Tensor
    mask_logits: Tensor
    class_logits: Tensor
    semantic_logits: Tensor | None
    mask_embedding: Tensor | None = None


class Figure(NamedTuple):
    """A curve of training beside the losses: a field of the tuple that a loss gives.

    Attributes:
      name: The field, [batch].
      group: Under what TensorBoard shows it.
      weight: The field with which images weigh in its mean; None: all weigh the same.
    """

    name: str
    group: str
    weight: str | None = None


class PanopticPrediction(NamedTuple):
    """Post-processed maps of a batch, at the size of the network's input (architecture section 9).

    Attributes:
      panoptic: int32 [batch, height, width], class id * label_divisor + instance; instance is the
        slot's number from 1 for things, 0 for stuff.
      semantic: int32 [batch, height, width], class of each pixel's best slot, no threshold applied.
      instance: int32 [batch, height, width], number of each pixel's best slot, from 1.
      instance_score: float32 [batch, height, width], the pixel's confidence in its slot.
      semantic_score: float32 [batch, height, width], the slot's confidence in its class.
    """

    panoptic: Tensor
    semantic: Tensor
    instance: Tensor
    instance_score: Tensor
    semantic_score: Tensor
