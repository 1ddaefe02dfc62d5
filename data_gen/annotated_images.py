"""Annotated images, the results of converters, and their records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import examples
from maxdl_tf.errors import UserError


class Annotated(Protocol):
    """The result of a converter for one task."""

    image_id: str

    def encode(self, label_format: str) -> bytes:
        """Returns the serialized `tf.train.Example`, with label maps in the given format.

        Raises:
          ValueError: A value does not fit into the format.
        """


class AnnotatedImage(NamedTuple):
    """An image and its label map.

    Attributes:
      image_bytes: Content of the image file, RGB.
      image_format: "jpeg" or "png".
      label: int [height, width], class id * label divisor + instance.
      image_id: File name without extension.
    """

    image_bytes: bytes
    image_format: str
    label: np.ndarray
    image_id: str

    def encode(self, label_format: str) -> bytes:
        return examples.encode_panoptic_example(*self, label_format=label_format)


class ClassifiedImage(NamedTuple):
    """An image and its class.

    Attributes:
      image_bytes: Content of the image file, RGB.
      image_format: "jpeg" or "png".
      size: (height, width).
      class_id: Class id, from 1.
      class_name: Human-readable name of the class.
      image_id: Name of the image in messages.
    """

    image_bytes: bytes
    image_format: str
    size: tuple[int, int]
    class_id: int
    class_name: str
    image_id: str

    def encode(self, label_format: str) -> bytes:
        del label_format  # No label map.
        return examples.encode_classified_example(*self)


class Conversion(NamedTuple):
    """Images and the converter that the flags of a command ask for.

    Attributes:
      tasks: One picklable object per image.
      annotate: Picklable function that converts a task; it raises UserError for bad input.
      dataset_info: The class table.
      image_path: Picklable function that returns the path of a task's image; None if the image is missing.
    """

    tasks: Sequence[Any]
    annotate: Callable[[Any], AnnotatedImage]
    dataset_info: DatasetInfo
    image_path: Callable[[Any], str | None]


class Record(NamedTuple):
    """A serialized example.

    Attributes:
      content: The `tf.train.Example`.
      pixels: Number of pixels of the label map; 0 if there is none.
      void: Number of void ones among them.
      has_objects: Whether the label map has an instance.
    """

    content: bytes
    pixels: int = 0
    void: int = 0
    has_objects: bool = False


def make_record(
    annotate: Callable[[Any], Annotated], label_format: str, void: int, label_divisor: int, task: Any
) -> Record | UserError:
    """Returns the record of a task, or the error if its input is bad; `void` is the label of void."""
    try:
        annotated = annotate(task)
        try:
            content = annotated.encode(label_format)
            if not isinstance(annotated, AnnotatedImage):
                return Record(content)
            label = annotated.label
            is_void = label == void
            has_objects = bool(np.any((label % label_divisor != 0) & ~is_void))
            return Record(content, label.size, int(np.count_nonzero(is_void)), has_objects)
        except ValueError as error:
            raise UserError(f"{annotated.image_id}: {error}") from error
    except UserError as error:
        return error
