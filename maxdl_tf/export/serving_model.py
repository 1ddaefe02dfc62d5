"""The content of a SavedModel: three signatures that take images and return segmentations.

    serving_default   image_bytes  string [batch], JPEG or PNG files of any sizes; see `image_decoding`
    image_tensor      image        uint8 [batch, h, w, 3], RGB, any h and w
    tf_example        examples     string [batch], serialized tf.Examples with the file under `image/encoded`

All signatures return, with one of `rows` for each mask slot, or more if things are split,

    panoptic_map       int32 [batch, max h, max w], class id * label divisor + instance; void outside the image
    image_size         int32 [batch, 2], (height, width) of the upright image
    num_segments       int32 [batch], number of rows in use below; these are ordered by id, and the rest are zeros
    segment_ids        int32 [batch, rows], values in the map
    segment_class_ids  int32 [batch, rows]
    segment_scores     float32 [batch, rows]
    segment_areas      int32 [batch, rows], in pixels
    segment_boxes      int32 [batch, rows, 4], (left, top, width, height) in pixels

and on request

    panoptic_png_bytes string [batch], the map of the image's size as COCO's PNG: segment ids as colors, 0 where void
    score_map          float32 [batch, max h, max w], score of each pixel; 0 where void

The images of a batch are processed one at a time. Results do not depend on the other images, and the memory of the
network does not grow with their number. On CPUs this takes no extra time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from maxdl_tf.data.examples import IMAGE_ENCODED, encode_image_example
from maxdl_tf.export.image_decoding import decode_image, encoded_images, image_sizes
from maxdl_tf.files.images import MAX_PIXELS
from maxdl_tf.files.intensity import IntensityRule
from maxdl_tf.inference.segmenter import OUTPUT_NAMES, ImageSegmenter
from maxdl_tf.protos import serving_log_pb2
from maxdl_tf.structs import PanopticOutputs

SIGNATURES = ("serving_default", "image_tensor", "tf_example")
_MOST_PADDING = 4  # Padded maps of a batch to pixels of its images, or to --max_pixels if that is more.
WARM_UP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


@dataclass(frozen=True)
class ServingOptions:
    """Limits and optional outputs of the signatures.

    Attributes:
      max_pixels: Encoded images of more pixels are refused before they are decoded.
      png_output: Whether to return `panoptic_png_bytes`. TF Serving's REST encodes names with this ending as binary.
      score_maps: Whether to return `score_map`.
    """

    max_pixels: int = MAX_PIXELS
    png_output: bool = False
    score_maps: bool = False


class ServingModel(tf.Module):
    """The functions of a SavedModel.

    Keras objects are reachable only from the graphs. As attributes they would be saved with their classes, which a
    loader without this package lacks.

    Args:
      segmenter: Segmentation to export.
      void: Value of void pixels in panoptic maps.
      options: Limits and optional outputs of the signatures.
      assets: Paths of files to store with the model, by the names of their attributes.
      intensity: Rule of the class table for PNG files of 16 bits.

    Attributes:
      network_outputs: Function from one image, uint8 [h, w, 3], to the network's outputs by name, for inspection.
      weights: Variables that inference reads.
    """

    def __init__(
        self,
        segmenter: ImageSegmenter,
        void: int,
        options: ServingOptions,
        assets: Mapping[str, str],
        intensity: IntensityRule | None = None,
    ):
        super().__init__(name="maxdl_tf")
        for name, path in assets.items():
            setattr(self, name, tf.saved_model.Asset(path))
        self._void, self._options, self._intensity = void, options, intensity
        one_image = tf.TensorSpec([None, None, 3], tf.uint8, name="image")

        # Nothing here needs AutoGraph, which makes tracing several times slower.
        @tf.function(input_signature=[one_image], autograph=False)
        def network_outputs(image):
            outputs = segmenter.network_outputs(image)._asdict()
            return {name: output for name, output in outputs.items() if name not in ("semantic_logits", "auxiliary")}

        traced_network = network_outputs.get_concrete_function()  # The function itself would be traced twice.

        @tf.function(input_signature=[one_image], autograph=False)
        def segment(image):
            outputs = PanopticOutputs(**traced_network(image), semantic_logits=None)
            return segmenter.segment_outputs(outputs, tf.shape(image)[:2])

        self.network_outputs = network_outputs
        self._segment = segment.get_concrete_function()
        self.weights = list(self._segment.graph.variables)

    def signatures(self) -> dict[str, Callable]:
        """The traced signatures by name."""

        def serving_default(image_bytes):
            sizes = image_sizes(image_bytes, self._options.max_pixels)
            sizes = _check_padding(sizes, self._options.max_pixels)
            return self._segment_all(
                lambda index: decode_image(image_bytes, index, sizes[index], self._intensity), sizes
            )

        def image_tensor(image):
            size = tf.shape(image)[1:3]
            not_empty = tf.debugging.Assert(tf.reduce_all(size > 0), ["images without pixels, of size", size])
            with tf.control_dependencies([not_empty]):
                sizes = tf.repeat(size[tf.newaxis], tf.shape(image)[0], axis=0)
            return self._segment_all(lambda index: image[index], sizes)

        def tf_example(examples):
            return serving_default(encoded_images(examples, IMAGE_ENCODED))

        specs = {
            serving_default: tf.TensorSpec([None], tf.string, name="image_bytes"),
            image_tensor: tf.TensorSpec([None, None, None, 3], tf.uint8, name="image"),
            tf_example: tf.TensorSpec([None], tf.string, name="examples"),
        }
        return {
            function.__name__: tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
            for function, spec in specs.items()
        }

    def _segment_all(self, read: Callable[[tf.Tensor], tf.Tensor], sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        """The outputs of a batch. `read` returns the image at an index; `sizes` is int32 [batch, 2]."""
        not_empty = tf.debugging.Assert(tf.shape(sizes)[0] > 0, ["the batch is empty; send at least one image"])
        with tf.control_dependencies([not_empty]):
            sizes = tf.identity(sizes)
            # Otherwise stacking no maps would fail first, with an obscure error.
            num_images = tf.maximum(tf.shape(sizes)[0], 1)
        common_size = tf.reduce_max(sizes, axis=0)

        def outputs_of(index):
            prediction = self._segment(read(index))
            margins = [[0, common_size[axis] - sizes[index, axis]] for axis in (0, 1)]
            outputs = {
                "panoptic_map": tf.pad(prediction.panoptic, margins, constant_values=self._void),
                **dict(zip(OUTPUT_NAMES, prediction.segments)),
            }
            if self._options.png_output:
                outputs["panoptic_png_bytes"] = coco_png(prediction.panoptic, self._void)
            if self._options.score_maps:
                outputs["score_map"] = tf.pad(prediction.score, margins)
            return outputs

        outputs = tf.map_fn(
            outputs_of,
            tf.range(num_images),
            fn_output_signature=self._output_specs(),
            parallel_iterations=1,
        )
        return {**outputs, "image_size": sizes}

    def _output_specs(self) -> dict[str, tf.TensorSpec]:
        """Types and shapes of the outputs for one image."""
        map_of_image = [None, None]
        segments = self._segment.structured_outputs.segments
        specs = {
            "panoptic_map": tf.TensorSpec(map_of_image, tf.int32),
            **{name: tf.TensorSpec(field.shape, field.dtype) for name, field in zip(OUTPUT_NAMES, segments)},
        }
        if self._options.png_output:
            specs["panoptic_png_bytes"] = tf.TensorSpec([], tf.string)
        if self._options.score_maps:
            specs["score_map"] = tf.TensorSpec(map_of_image, tf.float32)
        return specs


def _check_padding(sizes: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """`sizes`, int32 [batch, 2]; raises if padding makes the maps of a batch far larger than its images.

    All maps have the largest height and width. One tall image would make those of a thousand tiny ones as tall.
    """
    sizes = tf.cast(sizes, tf.int64)
    pixels = tf.reduce_sum(tf.reduce_prod(sizes, axis=1))
    padded = tf.size(sizes, tf.int64) // 2 * tf.reduce_prod(tf.reduce_max(tf.concat([sizes, [[1, 1]]], axis=0), axis=0))
    few = padded <= _MOST_PADDING * tf.maximum(pixels, max_pixels)
    complaint = "the batch has images of too different sizes, which are padded to the largest; send them apart"
    with tf.control_dependencies([tf.debugging.Assert(few, [complaint])]):
        return tf.cast(sizes, tf.int32)


def coco_png(panoptic: tf.Tensor, void: int) -> tf.Tensor:
    """string scalar, int32 [h, w] as COCO's panoptic PNG: ids as colors (`panoptic_ids`), 0 where void."""
    ids = tf.where(panoptic == void, 0, panoptic)
    color = tf.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    return tf.io.encode_png(tf.cast(color, tf.uint8), compression=3)


def write_warm_up_requests(saved_model: str, image_size: tuple[int, int]) -> None:
    """Adds one request for each signature to a SavedModel, as a TFRecord file of serialized PredictionLogs.

    TensorFlow Serving sends them before it serves the model, so that no user waits for the first requests.

    Args:
      saved_model: Folder of the SavedModel.
      image_size: (height, width) of the image in the requests.
    """
    height, width = image_size
    ramps = np.indices([height, width]) * 255 // np.reshape([height, width], [2, 1, 1])
    image = np.stack([*ramps, ramps.sum(axis=0) // 2], axis=-1).astype(np.uint8)
    encoded = tf.io.encode_jpeg(image).numpy()
    requests = (
        ("serving_default", "image_bytes", [encoded]),
        ("image_tensor", "image", image[np.newaxis]),
        ("tf_example", "examples", [encode_image_example(encoded)]),
    )
    path = os.path.join(saved_model, WARM_UP_FILE)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature, argument, batch in requests:
            log = serving_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            log.predict_log.request.inputs[argument] = tf.make_tensor_proto(batch).SerializeToString()
            writer.write(log.SerializeToString())
