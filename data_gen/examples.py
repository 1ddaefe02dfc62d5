"""What converters make of a task, and the record that goes into a shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from maxdl_tf.data import examples
from maxdl_tf.errors import UserError


class Example(Protocol):
    """What a converter makes of a task."""

    image_id: str

    def encode(self, label_format: str) -> bytes:
        """The serialized `tf.train.Example`, with label maps, if there are any, in that format (`Output`).

        Raises:
          ValueError: If something does not fit into it.
        """


class AnnotatedImage(NamedTuple):
    """An image and its label map.

    Attributes:
      image_bytes: The image file's content, RGB.
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
    """An image that has a class as a whole.

    Attributes:
      image_bytes: The image file's content, RGB.
      image_format: "jpeg" or "png".
      size: (height, width).
      class_id: From 1.
      class_name: For people.
      image_id: What messages call the image.
    """

    image_bytes: bytes
    image_format: str
    size: tuple[int, int]
    class_id: int
    class_name: str
    image_id: str

    def encode(self, label_format: str) -> bytes:
        del label_format  # It has no label map.
        return examples.encode_classified_example(*self)


def make_record(annotate: Callable[[Any], Example], label_format: str, task: Any) -> bytes | UserError:
    """A serialized example, or what is wrong with the input."""
    try:
        annotated = annotate(task)
        try:
            return annotated.encode(label_format)
        except ValueError as error:
            raise UserError(f"{annotated.image_id}: {error}") from error
    except UserError as error:
        return error
