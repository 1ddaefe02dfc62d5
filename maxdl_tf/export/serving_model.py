"""The content of a SavedModel: signatures that take images and return segmentations.

    serving_default   image_bytes  string [batch], JPEG or PNG files of any sizes; see `image_decoding`
    panoptic_png      image_bytes  the same
    image_tensor      image        uint8 [batch, h, w, 3], RGB, any h and w
    tf_example        examples     string [batch], serialized tf.Examples with the file under `image/encoded`

All signatures return, with one of `rows` for each mask slot, or more if things are split,

    image_size         int32 [batch, 2], (height, width) of the upright image
    num_segments       int32 [batch], number of rows in use below; these are ordered by id, and the rest are zeros
    segment_ids        int32 [batch, rows], values in the map
    segment_class_ids  int32 [batch, rows]
    segment_scores     float32 [batch, rows]
    segment_areas      int32 [batch, rows], in pixels
    segment_boxes      int32 [batch, rows, 4], (left, top, width, height) in pixels

All but `panoptic_png` also return the map, and on request its scores:

    panoptic_map       int32 [batch, max h, max w], class id * label divisor + instance; void outside the image
    score_map          float32 [batch, max h, max w], score of each pixel; 0 where void

`panoptic_png` is for small answers. It has only as many rows as the batch needs, at least one, and returns

    panoptic_png_bytes string [batch], the map of the image's size as COCO's PNG: segment ids as colors, 0 where void

The images of a batch are processed one at a time. Results do not depend on the other images, and the memory of the
network does not grow with their number. On CPUs this takes no extra time. With `ServingOptions.network_batch`, the
network takes several images at once, for accelerators.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.examples import IMAGE_ENCODED, encode_image_example
from maxdl_tf.export.image_decoding import decode_image, encoded_images, image_sizes
from maxdl_tf.files.images import MAX_PIXELS
from maxdl_tf.inference.segmenter import OUTPUT_NAMES, PNG_OUTPUT, ImageSegmenter
from maxdl_tf.panoptic_ids import MAX_SEGMENT_ID, encode_label
from maxdl_tf.protos import serving_log_pb2
from maxdl_tf.structs import PanopticOutputs

_MOST_PADDING = 4  # Padded maps of a batch to pixels of its images, or to --max_pixels if that is more.
WARM_UP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


@dataclass(frozen=True)
class ServingOptions:
    """Limits and optional outputs of the signatures.

    Attributes:
      max_pixels: Encoded images of more pixels are refused before they are decoded.
      score_maps: Whether to return `score_map`.
      network_batch: Largest number of images that the network takes at once.
    """

    max_pixels: int = MAX_PIXELS
    score_maps: bool = False
    network_batch: int = 1


class ServingModel(tf.Module):
    """The functions of a SavedModel.

    Keras objects are reachable only from the graphs. As attributes they would be saved with their classes, which a
    loader without this package lacks.

    Args:
      segmenter: Segmentation to export.
      dataset_info: Class table of the panoptic maps. Its rule for values of more than 8 bits is for PNG files.
      options: Limits and optional outputs of the signatures.
      assets: Paths of files to store with the model, by the names of their attributes.

    Attributes:
      network_outputs: Function from one image, uint8 [h, w, 3], to the network's outputs by name, for inspection.
      weights: Variables that inference reads.
    """

    def __init__(
        self,
        segmenter: ImageSegmenter,
        dataset_info: DatasetInfo,
        options: ServingOptions,
        assets: Mapping[str, str],
    ):
        super().__init__(name="maxdl_tf")
        for name, path in assets.items():
            setattr(self, name, tf.saved_model.Asset(path))
        self._dataset_info, self._options = dataset_info, options
        crops = tf.TensorSpec([1 if options.network_batch == 1 else None, *segmenter.crop_size, 3], tf.float32)

        # Nothing here needs AutoGraph, which makes tracing several times slower.
        @tf.function(input_signature=[crops], autograph=False)
        def network(crops):
            outputs = segmenter.network(crops)._asdict()
            return {name: output for name, output in outputs.items() if name not in ("semantic_logits", "auxiliary")}

        self._crop = segmenter.crop
        self._network = network.get_concrete_function()
        self.weights = list(self._network.graph.variables)

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8, name="image")], autograph=False)
        def network_outputs(image):
            return self._network(segmenter.crop(image)[tf.newaxis])

        self.network_outputs = network_outputs
        of_one_image = {
            name: tf.TensorSpec([1, *spec.shape[1:]], spec.dtype)
            for name, spec in self._network.structured_outputs.items()
        }

        @tf.function(input_signature=[of_one_image, tf.TensorSpec([2], tf.int32)], autograph=False)
        def segment_outputs(outputs, image_size):
            return segmenter.segment_outputs(PanopticOutputs(**outputs, semantic_logits=None), image_size)

        self._segment_outputs = segment_outputs.get_concrete_function()

    def signatures(self) -> dict[str, Callable]:
        """The traced signatures by name."""

        def of_files(image_bytes, png=False):
            sizes = image_sizes(image_bytes, self._options.max_pixels)
            sizes = _check_padding(sizes, self._options.max_pixels)
            intensity = self._dataset_info.intensity
            return self._segment_all(
                lambda index: decode_image(image_bytes, index, sizes[index], intensity), sizes, png
            )

        def serving_default(image_bytes):
            return of_files(image_bytes)

        def panoptic_png(image_bytes):
            return of_files(image_bytes, png=True)

        def image_tensor(image):
            size = tf.shape(image)[1:3]
            not_empty = tf.debugging.Assert(tf.reduce_all(size > 0), ["images without pixels, of size", size])
            with tf.control_dependencies([not_empty]):
                sizes = tf.repeat(size[tf.newaxis], tf.shape(image)[0], axis=0)
            return self._segment_all(lambda index: image[index], sizes)

        def tf_example(examples):
            return of_files(encoded_images(examples, IMAGE_ENCODED))

        specs = {
            serving_default: tf.TensorSpec([None], tf.string, name="image_bytes"),
            panoptic_png: tf.TensorSpec([None], tf.string, name="image_bytes"),
            image_tensor: tf.TensorSpec([None, None, None, 3], tf.uint8, name="image"),
            tf_example: tf.TensorSpec([None], tf.string, name="examples"),
        }
        if not png_holds_labels(self._dataset_info):
            del specs[panoptic_png]
        return {
            function.__name__: tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
            for function, spec in specs.items()
        }

    def _segment_all(
        self, read: Callable[[tf.Tensor], tf.Tensor], sizes: tf.Tensor, png: bool = False
    ) -> dict[str, tf.Tensor]:
        """The outputs of a batch.

        Args:
          read: Function from an index of the batch to the image, uint8 [h, w, 3].
          sizes: int32 [batch, 2], (height, width) of each image.
          png: Whether to return each map as a PNG.
        """
        not_empty = tf.debugging.Assert(tf.shape(sizes)[0] > 0, ["the batch is empty; send at least one image"])
        with tf.control_dependencies([not_empty]):
            sizes = tf.identity(sizes)
            # Otherwise stacking no maps would fail first, with an obscure error.
            num_images = tf.maximum(tf.shape(sizes)[0], 1)
        common_size = tf.reduce_max(sizes, axis=0)

        def outputs_of(index, network_outputs):
            prediction = self._segment_outputs(network_outputs, sizes[index])
            outputs = dict(zip(OUTPUT_NAMES, prediction.segments))
            if png:
                return {**outputs, PNG_OUTPUT: coco_png(prediction.panoptic, self._dataset_info.void)}
            margins = [[0, common_size[axis] - sizes[index, axis]] for axis in (0, 1)]
            outputs["panoptic_map"] = tf.pad(prediction.panoptic, margins, constant_values=self._dataset_info.void)
            if self._options.score_maps:
                outputs["score_map"] = tf.pad(prediction.score, margins)
            return outputs

        specs = self._output_specs(png)
        if self._options.network_batch == 1:
            outputs = _map(
                lambda index: outputs_of(index, self.network_outputs(read(index))), tf.range(num_images), specs
            )
        else:
            outputs = self._in_runs(read, num_images, outputs_of, specs)
        if png:
            rows = tf.maximum(tf.reduce_max(outputs["num_segments"]), 1)
            outputs.update({name: outputs[name][:, :rows] for name in OUTPUT_NAMES if outputs[name].shape.rank > 1})
        return {**outputs, "image_size": sizes}

    def _in_runs(self, read: Callable, num_images: tf.Tensor, outputs_of: Callable, specs: dict) -> dict:
        """The outputs of a batch, of which the network takes at most `network_batch` images at once.

        So its memory does not grow with the batch. The rest is done image by image, as images have different sizes.
        """
        size = self._options.network_batch
        num_runs = (num_images + size - 1) // size

        def run(number, arrays):
            images = tf.range(number * size, tf.minimum((number + 1) * size, num_images))
            crops = _map(
                lambda index: self._crop(read(index)), images, tf.TensorSpec(self._network.inputs[0].shape[1:])
            )
            of_run = self._network(crops)

            def segment(place):
                return outputs_of(images[place], {name: value[place][tf.newaxis] for name, value in of_run.items()})

            outputs = _map(segment, tf.range(tf.size(images)), specs)
            return number + 1, {name: array.write(number, outputs[name]) for name, array in arrays.items()}

        arrays = {
            name: tf.TensorArray(spec.dtype, num_runs, element_shape=[None, *spec.shape], infer_shape=False)
            for name, spec in specs.items()
        }
        _, arrays = tf.while_loop(lambda number, _: number < num_runs, run, (0, arrays), parallel_iterations=1)
        return {name: array.concat() for name, array in arrays.items()}

    def _output_specs(self, png: bool) -> dict[str, tf.TensorSpec]:
        """Types and shapes of the outputs for one image."""
        segments = self._segment_outputs.structured_outputs.segments
        specs = {name: tf.TensorSpec(field.shape, field.dtype) for name, field in zip(OUTPUT_NAMES, segments)}
        if png:
            return {**specs, PNG_OUTPUT: tf.TensorSpec([], tf.string)}
        specs["panoptic_map"] = tf.TensorSpec([None, None], tf.int32)
        if self._options.score_maps:
            specs["score_map"] = tf.TensorSpec([None, None], tf.float32)
        return specs


def _map(function: Callable, elements: tf.Tensor, specs) -> Any:
    """`tf.map_fn` with one element at a time, which saves memory."""
    return tf.map_fn(function, elements, fn_output_signature=specs, parallel_iterations=1)


def png_holds_labels(dataset_info: DatasetInfo) -> bool:
    """Whether all labels of a class table fit into the three bytes of a PNG's pixels."""
    return encode_label(max(dataset_info.class_order) + 1, 0, dataset_info.label_divisor) - 1 <= MAX_SEGMENT_ID


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


def write_warm_up_requests(saved_model: str, signatures: Iterable[str], image_size: tuple[int, int]) -> None:
    """Adds one request for each of these signatures to a SavedModel, as a TFRecord file of serialized PredictionLogs.

    TensorFlow Serving sends them before it serves the model, so that no user waits for the first requests.

    Args:
      saved_model: Folder of the SavedModel.
      signatures: Names of its signatures.
      image_size: (height, width) of the image in the requests.
    """
    height, width = image_size
    ramps = np.indices([height, width]) * 255 // np.reshape([height, width], [2, 1, 1])
    image = np.stack([*ramps, ramps.sum(axis=0) // 2], axis=-1).astype(np.uint8)
    encoded = tf.io.encode_jpeg(image).numpy()
    argument_and_batch = {
        "image_tensor": ("image", image[np.newaxis]),
        "tf_example": ("examples", [encode_image_example(encoded)]),
    }
    path = os.path.join(saved_model, WARM_UP_FILE)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature in signatures:
            argument, batch = argument_and_batch.get(signature, ("image_bytes", [encoded]))
            log = serving_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            log.predict_log.request.inputs[argument] = tf.make_tensor_proto(batch).SerializeToString()
            writer.write(log.SerializeToString())
