"""Verifies that an export predicts what its model predicts, in another process without this package.

Labels must be equal, with one exception. If two masks are equally probable within float32 rounding, or a probability is
at a threshold, a network that sums in another order may decide otherwise. Such pixels count as ties only with a proof:
the outputs of both networks agree within rounding, and the post-processing of the exported outputs gives exactly the
exported labels. How far rounding reaches is measured on the model alone: k-means assigns each pixel to one slot, so
that rounding may move a pixel's value to another slot and the outputs jump.

Mask-wise post-processing numbers instances by rank, and split things have numbers by area. Rounding may exchange these,
too, so they are not compared.

With some weights, such as random ones of a large model, rounding decides most labels. Then nothing can be compared.
This is measured on the model alone, by moving its input by one unit in the last place of float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.errors import UserError
from maxdl_tf.inference.segmenter import ImageSegmenter
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.panoptic_ids import color_to_id
from maxdl_tf.structs import PanopticOutputs

RUNNER = os.path.join(os.path.dirname(__file__), "run_export.py")
# Largest difference of outputs relative to their maximum. Rounding of 1e-7 grows through some seventy layers.
ROUNDING = 1e-3
# Largest share of pixels that may be ties; more would not be a coincidence.
MOST_TIES = 1e-3
# A difference is rounding's if moving the input alone makes this share of it.
_SHARE_OF_ROUNDING = 0.1
# Moves of the input, in units of its last place: small ones shift outputs, larger ones also turn near ties of k-means.
_MOVES = (1.0, -1.0, 64.0, -64.0)
# Largest difference of outputs relative to their change by such a move.
_TIMES = 10.0


class Agreement(NamedTuple):
    """Agreement of an export with its model, over all images.

    Attributes:
      pixels: Number of compared pixels.
      segments: Number of segments that the model predicts, without void.
      ties: Number of pixels with another label that are proven ties.
      differing: Number of other pixels with another label.
    """

    pixels: int
    segments: int
    ties: int
    differing: int

    @property
    def share(self) -> float:
        """Share of pixels with the same label or a tie."""
        return 1.0 - self.differing / self.pixels

    def summary(self) -> str:
        """A human-readable line, such as "labels equal on 61632 pixels (2 segments)".

        Different labels are counted, and the share of the others is stated.
        """
        equal = self.pixels - self.ties - self.differing
        ties = f" and tied on {self.ties}" * (self.ties > 0)
        differing = f" and different on {self.differing} ({100 * self.share:.2f} % equal)" * (self.differing > 0)
        return f"labels equal on {equal} pixels{ties}{differing} ({self.segments} segments)"


class Reference:
    """The predictions of the model in this process.

    Args:
      model: Model with its final weights.
      postprocessor: Makes the panoptic map from the outputs.
      crop_size: (height, width) of the network's input.
      read_off: Post-processing of the export, if it is not that of TensorFlow: makes the panoptic map from mask logits
        and class logits, batch 1, and the (height, width) of the image.
    """

    def __init__(
        self,
        model: PanopticNetwork,
        postprocessor: Postprocessor,
        crop_size: tuple[int, int],
        read_off: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        segmenter = ImageSegmenter(model, postprocessor, crop_size)

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
        def network_outputs(image):
            outputs = segmenter.network_outputs(image)
            return {"mask_logits": outputs.mask_logits, "class_logits": outputs.class_logits}

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([])], autograph=False)
        def moved_outputs(image, units):
            padded, _ = transforms.evaluation_transform(image, crop_size, postprocessor.enlarge)
            outputs = model(padded[tf.newaxis] * (1.0 + units * np.finfo(np.float32).eps), training=False)
            return {"mask_logits": outputs.mask_logits, "class_logits": outputs.class_logits}

        @tf.function(autograph=False)
        def label_map(mask_logits, class_logits, image_size):
            outputs = PanopticOutputs(None, mask_logits, class_logits, None)
            return segmenter.segment_outputs(outputs, image_size).panoptic

        self._network_outputs, self._label_map, self._void = network_outputs, label_map, postprocessor.void
        self._divisor = postprocessor.dataset_info.label_divisor if postprocessor.may_renumber else None
        self._moved_outputs, self._read_off = moved_outputs, read_off or label_map

    def compare(self, encoded: bytes, exported: Mapping[str, np.ndarray]) -> Agreement:
        """Compares the predictions for an image file with `exported`, the arrays that the export returned."""
        image = decode(encoded)
        size = tf.shape(image)[:2]
        outputs = {name: value.numpy() for name, value in self._network_outputs(image).items()}
        wanted = self._label_map(**outputs, image_size=size).numpy()
        segments = len(set(np.unique(wanted)) - {self._void})
        if exported["panoptic_map"].shape != wanted.shape:
            return Agreement(wanted.size, segments, 0, wanted.size)
        differing = int(self._differs(exported["panoptic_map"], wanted).sum())
        are_ties = 0 < differing <= MOST_TIES * wanted.size and self._proves_ties(image, outputs, exported)
        return Agreement(wanted.size, segments, *((differing, 0) if are_ties else (0, differing)))

    def check_png(self, exported: Mapping[str, np.ndarray]) -> None:
        """Raises RuntimeError unless the PNG of a SavedModel, if it returned one, is its panoptic map."""
        png, label_map = exported.get("panoptic_png"), exported["panoptic_map"]
        if png is None:
            return
        if not np.array_equal(color_to_id(png), np.where(label_map == self._void, 0, label_map)):
            raise RuntimeError(
                "the exported signature panoptic_png returns another map than serving_default; the export was removed"
            )

    def turned_share(self, encoded: bytes) -> float:
        """Share of an image's pixels whose label turns if the network's input moves by one unit in the last place.

        The larger one of a move of all values up and a move down.
        """
        image = decode(encoded)
        size = tf.shape(image)[:2]
        label_map = self._label_map(**self._network_outputs(image), image_size=size).numpy()
        moved = (self._label_map(**self._moved_outputs(image, units), image_size=size).numpy() for units in (1.0, -1.0))
        return max(float(self._differs(other, label_map).mean()) for other in moved)

    def _differs(self, label_map: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return wanted != (label_map if self._divisor is None else renumbered(label_map, wanted, self._divisor))

    def _proves_ties(self, image, outputs: Mapping[str, np.ndarray], exported: Mapping[str, np.ndarray]) -> bool:
        image_size = tf.shape(image)[:2].numpy()
        read_off = self._read_off(exported["mask_logits"], exported["class_logits"], image_size)
        if not np.array_equal(read_off, exported["panoptic_map"]):
            return False
        changes = {name: _change(exported[name], value) for name, value in outputs.items()}
        if max(changes.values()) <= ROUNDING:
            return True
        for units in _MOVES:
            moved = self._moved_outputs(image, units)
            reach = {name: _TIMES * _change(moved[name].numpy(), value) for name, value in outputs.items()}
            if all(change <= max(ROUNDING, reach[name]) for name, change in changes.items()):
                return True
        return False


def renumbered(label_map: np.ndarray, wanted: np.ndarray, label_divisor: int) -> np.ndarray:
    """`label_map` with the instance numbers of another map, by the largest overlaps in the same class, one to one.

    Instances that overlap with none become -1.
    """
    pairs, pixels = np.unique(label_map.astype(np.int64) << 32 | wanted, return_counts=True)
    number_of: dict[int, int] = {}
    for pair in pairs[np.argsort(-pixels, kind="stable")].tolist():
        old, new = pair >> 32, pair & 0xFFFFFFFF
        if old // label_divisor == new // label_divisor and old not in number_of and new not in number_of.values():
            number_of[old] = new
    labels, place = np.unique(label_map, return_inverse=True)
    return np.array([number_of.get(label, -1) for label in labels.tolist()])[place].reshape(label_map.shape)


def run_in_fresh_process(export: str, images: Mapping[str, bytes], folder: str) -> dict[str, str]:
    """Runs an export on image files in a process that has neither this package nor Keras.

    It has no TensorFlow either, unless the export is a SavedModel.

    Args:
      export: Folder of the export.
      images: Contents of the files, by name.
      folder: Empty folder for temporary files.

    Returns:
      Paths of the results, .npz files in `folder`, by the names of the images.

    Raises:
      RuntimeError: The export cannot be loaded or run.
    """
    inputs, outputs = (os.path.join(folder, name) for name in ("inputs", "outputs"))
    os.mkdir(inputs)
    os.mkdir(outputs)
    file_of_name = {name: f"{number:06}" for number, name in enumerate(images)}
    for name, encoded in images.items():
        path = os.path.join(inputs, file_of_name[name])
        with open(f"{path}.image", "wb") as file:
            file.write(encoded)
        np.save(f"{path}.npy", decode(encoded).numpy())
    command = [sys.executable, "-I", RUNNER, export, inputs, outputs]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    # The runner ends when this pipe closes, so it does not outlive this process if that is killed.
    alive, until_end = os.pipe()
    try:
        done = subprocess.run(command, stdin=alive, capture_output=True, text=True, errors="replace", env=environment)
    finally:
        os.close(alive)
        os.close(until_end)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"the export does not run in a fresh process ({last}); it was removed")
    return {name: os.path.join(outputs, f"{file}.npz") for name, file in file_of_name.items()}


def verify(reference: Reference, export: str, images: Mapping[str, bytes], min_agreement: float = 1.0) -> Agreement:
    """Compares an export with its model.

    Args:
      reference: Predictions of the model.
      export: Folder of the export.
      images: Contents of upright JPEG or PNG files, by name.
      min_agreement: Least share of an image's pixels with the same label or a tie.

    Returns:
      The agreement over all images.

    Raises:
      RuntimeError: Not all labels agree though `min_agreement` is 1, or the export does not run.
      UserError: There is no image, or rounding decides the labels of one that agrees less, or fewer agree than a
        `min_agreement` below 1.
    """
    if not images:
        raise UserError("no images to compare on; give one at least")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in run_in_fresh_process(export, images, folder).items():
            with np.load(path) as exported:
                agreement = reference.compare(images[name], exported)
                reference.check_png(exported)
            if agreement.share < min_agreement:
                turned = reference.turned_share(images[name])
                if turned >= _SHARE_OF_ROUNDING * (1.0 - agreement.share):
                    raise UserError(
                        f"image {name} cannot be compared, because rounding decides the labels of this model: if its "
                        f"input moves by one unit in the last place of float32, {turned:.2%} of them turn, and the "
                        f"export has {1.0 - agreement.share:.2%} other labels; export trained weights, give "
                        "photographs as --verify_images, or lower --min_agreement; the export was removed"
                    )
                found_little = (
                    f"on image {name} only {agreement.share:.4%} of the exported model's labels are the model's, less "
                    f"than {min_agreement:.4%}"
                )
                if min_agreement < 1:  # 16 bits may be too few for these weights or for this image.
                    raise UserError(
                        f"{found_little}; give images like those of the training as --verify_images, or lower "
                        "--min_agreement; the export was removed"
                    )
                raise RuntimeError(f"{found_little}; the export was removed")
            found.append(agreement)
    return Agreement(*(sum(field) for field in zip(*found)))


def decode(encoded: bytes) -> tf.Tensor:
    """uint8 [h, w, 3], the pixels of an image file."""
    return tf.io.decode_image(encoded, 3, expand_animations=False)


def _change(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference of arrays [..., slots or classes], but for a common offset of the last axis, relative to 1.

    Where the largest of `wanted` is above 1, it is relative to that.
    """
    got, wanted = (array - array.mean(axis=-1, keepdims=True) for array in (got, wanted))
    return float(np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max()))
