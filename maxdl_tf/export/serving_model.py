"""What a SavedModel of this package holds: three signatures that take images and give segmentations.

    serving_default   image_bytes  string [batch], JPEG or PNG files of any sizes (`image_decoding` says what of them)
    image_tensor      image        uint8 [batch, h, w, 3], RGB, any h and w
    tf_example        examples     string [batch], serialized tf.Examples with the file under `image/encoded`

All give, for `slots` masks of the model,

    panoptic_map       int32 [batch, max h, max w], class id * label divisor + instance; void outside of an image
    image_size         int32 [batch, 2], (height, width)
    num_segments       int32 [batch], rows that count in what follows, ordered by id; the others are zeros
    segment_ids        int32 [batch, slots], values in the map
    segment_class_ids  int32 [batch, slots]
    segment_scores     float32 [batch, slots]
    segment_areas      int32 [batch, slots], pixels
    segment_boxes      int32 [batch, slots, 4], (left, top, width, height) in pixels

and if asked for

    panoptic_png_bytes string [batch], the map as COCO's PNG: segment ids as colors, 0 where void; of the image's size
    score_map          float32 [batch, max h, max w], each pixel's score; 0 where void

The images of a batch are worked on one after the other, each alone. So an image's result does not depend on its
company, and the network's memory not on their number. On CPUs that costs no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from maxdl_tf.data.examples import IMAGE_ENCODED
from maxdl_tf.export.image_decoding import decode_image, encoded_images, image_sizes
from maxdl_tf.inference.segmenter import ImageSegmenter
from maxdl_tf.structs import PanopticOutputs

SIGNATURES = ("serving_default", "image_tensor", "tf_example")


@dataclass(frozen=True)
class ServingOptions:
    """What the signatures take and give.

    Attributes:
      max_pixels: Encoded images of more pixels are refused before they are decoded.
      png_output: Give `panoptic_png_bytes`; by that ending TF Serving's REST knows that it is no text.
      score_maps: Give `score_map`.
    """

    max_pixels: int = 50_000_000
    png_output: bool = False
    score_maps: bool = False


class ServingModel(tf.Module):
    """The functions of a SavedModel. Keras objects are reachable from their graphs only.

    In the tree they would be saved as such, and a loader would look for their classes.

    Args:
      segmenter: What is exported.
      void: The value of void pixels in panoptic maps.
      options: What the signatures take and give.
      dataset_info_path: File of the class table, `class_table.parse` reads it; becomes an asset.
      export_info_path: JSON file with the versions and the origin of the weights; becomes an asset.

    Attributes:
      network_outputs: The network's outputs for one image, uint8 [h, w, 3], by name; for looking into the model.
      weights: The variables that inference reads.
    """

    def __init__(
        self,
        segmenter: ImageSegmenter,
        void: int,
        options: ServingOptions,
        dataset_info_path: str,
        export_info_path: str,
    ):
        super().__init__(name="maxdl_tf")
        self.dataset_info = tf.saved_model.Asset(dataset_info_path)
        self.export_info = tf.saved_model.Asset(export_info_path)
        self._void, self._options = void, options
        one_image = tf.TensorSpec([None, None, 3], tf.uint8, name="image")

        # Nothing in here needs AutoGraph, and tracing takes several times longer with it.
        @tf.function(input_signature=[one_image], autograph=False)
        def network_outputs(image):
            outputs = segmenter.network_outputs(image)._asdict()
            return {name: output for name, output in outputs.items() if name != "semantic_logits"}

        traced_network = network_outputs.get_concrete_function()  # The function itself would be traced twice.

        @tf.function(input_signature=[one_image], autograph=False)
        def segment(image):
            outputs = PanopticOutputs(**traced_network(image), semantic_logits=None)
            return segmenter.segment_outputs(outputs, tf.shape(image)[:2])

        self.network_outputs = network_outputs
        self._segment = segment.get_concrete_function()
        self.weights = list(self._segment.graph.variables)

    def signatures(self) -> dict[str, Callable]:
        """The signatures by name, traced."""

        def serving_default(image_bytes):
            sizes = image_sizes(image_bytes, self._options.max_pixels)
            return self._segment_all(lambda index: decode_image(image_bytes, index, sizes[index]), sizes)

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
        """The outputs of a batch; `read` gives the image of an index, `sizes` is int32 [batch, 2]."""
        not_empty = tf.debugging.Assert(tf.shape(sizes)[0] > 0, ["the batch is empty; send at least one image"])
        with tf.control_dependencies([not_empty]):
            sizes = tf.identity(sizes)
            # Of an empty batch too, whose stack of no maps would otherwise complain first.
            num_images = tf.maximum(tf.shape(sizes)[0], 1)
        common_size = tf.reduce_max(sizes, axis=0)

        def outputs_of(index):
            prediction = self._segment(read(index))
            margins = [[0, common_size[axis] - sizes[index, axis]] for axis in (0, 1)]
            segments = prediction.segments
            outputs = {
                "panoptic_map": tf.pad(prediction.panoptic, margins, constant_values=self._void),
                "num_segments": segments.count,
                "segment_ids": segments.ids,
                "segment_class_ids": segments.class_ids,
                "segment_scores": segments.scores,
                "segment_areas": segments.areas,
                "segment_boxes": segments.boxes,
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
        """Of one image."""
        map_of_image, (num_slots,) = [None, None], self._segment.structured_outputs.segments.ids.shape
        specs = {
            "panoptic_map": tf.TensorSpec(map_of_image, tf.int32),
            "num_segments": tf.TensorSpec([], tf.int32),
            "segment_ids": tf.TensorSpec([num_slots], tf.int32),
            "segment_class_ids": tf.TensorSpec([num_slots], tf.int32),
            "segment_scores": tf.TensorSpec([num_slots], tf.float32),
            "segment_areas": tf.TensorSpec([num_slots], tf.int32),
            "segment_boxes": tf.TensorSpec([num_slots, 4], tf.int32),
        }
        if self._options.png_output:
            specs["panoptic_png_bytes"] = tf.TensorSpec([], tf.string)
        if self._options.score_maps:
            specs["score_map"] = tf.TensorSpec(map_of_image, tf.float32)
        return specs


def coco_png(panoptic: tf.Tensor, void: int) -> tf.Tensor:
    """string scalar: int32 [h, w] as COCO's panoptic PNG, ids as colors (`panoptic_ids`), 0 where void."""
    ids = tf.where(panoptic == void, 0, panoptic)
    color = tf.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    return tf.io.encode_png(tf.cast(color, tf.uint8), compression=3)
