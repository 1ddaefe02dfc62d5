"""Which slot wins each pixel of one image, with as little work on its way as the answer allows.

The maps are those of `Postprocessor`, pixel by pixel. Three things are left out, because they cannot change them:
masks of slots that are not kept, as far as none of their pixels can win; everything but the maximum of the other slots
that are not kept; and the padding on the right and below, as long as nobody asks for its pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

STRIDE = 4  # From mask logits to the network's input.
_BAND_CELLS = 4  # Rows of logits that are resized at a time: 16 rows of pixels.
_ROUNDING = 1e-5  # By which interpolation may miss its bounds, relative to the logits.


class Winners(NamedTuple):
    """What the mask logits say of the pixels of a rectangle; all [height, width].

    Attributes:
      slot: int32, the best of the kept slots.
      confidence: float32, its probability among the kept slots.
      won: bool, whether no slot that was dropped has a greater logit there.
    """

    slot: tf.Tensor
    confidence: tf.Tensor
    won: tf.Tensor


class MaskCompetition:
    """The masks of one image, of which rectangles can be read.

    Args:
      mask_logits: float32 [height / 4, width / 4, slots].
      kept: bool [slots].
    """

    def __init__(self, mask_logits: tf.Tensor, kept: tf.Tensor):
        self._low_height, self._low_width, num_slots = mask_logits.shape
        self._any_kept = tf.reduce_any(kept)
        # Where there is none, one is taken that changes nothing: the kernels want a slot at least.
        first = tf.one_hot(0, num_slots, on_value=True, off_value=False)
        self._kept = tf.where(tf.cond(self._any_kept, lambda: kept, lambda: first))[:, 0]
        rivals = tf.where(~kept & _may_win(mask_logits))[:, 0]
        rivals = tf.cond(tf.size(rivals) > 0, lambda: rivals, lambda: self._kept[:1])
        self._kept_logits = tf.gather(mask_logits, self._kept, axis=-1)
        self._rival_logits = tf.gather(mask_logits, rivals, axis=-1)

    def winners(
        self, height: tf.Tensor, width: tf.Tensor, top: tf.Tensor | int = 0, left: tf.Tensor | int = 0
    ) -> Winners:
        """The winners of a rectangle inside of the image; it may be empty."""
        band_rows = _BAND_CELLS * STRIDE
        first_column = left // STRIDE
        cells = tf.minimum((left + width - 1) // STRIDE + 2, self._low_width) - first_column
        first_band = top // band_rows
        num_bands = tf.maximum((top + height - 1) // band_rows + 1 - first_band, 1)

        def judge(number, arrays):
            first_row = (first_band + number) * _BAND_CELLS
            rows = tf.minimum(first_row + _BAND_CELLS + 1, self._low_height) - first_row
            begin, size = tf.stack([first_row, first_column, 0]), tf.stack([rows, cells, -1])
            judged = self._judge(*(tf.slice(x, begin, size) for x in (self._kept_logits, self._rival_logits)))
            # The last row of a band is the first one of the next, but for the last band.
            return number + 1, [array.write(number, field[:band_rows]) for array, field in zip(arrays, judged)]

        arrays = [
            tf.TensorArray(dtype, num_bands, infer_shape=False, element_shape=[None, None])
            for dtype in (tf.int32, tf.float32, tf.bool)
        ]
        _, arrays = tf.while_loop(
            lambda number, _: number < num_bands, judge, (tf.constant(0), arrays), parallel_iterations=1
        )
        top, left = top - first_band * band_rows, left - first_column * STRIDE
        return Winners(*(array.concat()[top : top + height, left : left + width] for array in arrays))

    def _judge(self, kept_logits: tf.Tensor, rival_logits: tf.Tensor) -> Winners:
        logits = _upsampled(kept_logits)
        best = tf.reduce_max(logits, axis=-1)
        rival = tf.reduce_max(_upsampled(rival_logits), axis=-1)
        place = tf.argmax(logits, axis=-1, output_type=tf.int32)
        return Winners(
            slot=tf.cast(tf.gather(self._kept, place), tf.int32),
            confidence=1.0 / tf.reduce_sum(tf.exp(logits - best[..., tf.newaxis]), axis=-1),
            won=(best >= rival) & self._any_kept,
        )


def _may_win(logits: tf.Tensor) -> tf.Tensor:
    """bool [slots]: False for those that win no pixel of [height, width, slots], wherever it lies between the logits.

    Between four logits no slot is above the greatest nor below the smallest of its own. So only that one can win whose
    greatest reaches what some slot has at least.
    """
    greatest = _of_each_cell(logits)
    smallest = -_of_each_cell(-logits)
    to_beat = tf.reduce_max(smallest, axis=-1, keepdims=True)
    to_beat -= _ROUNDING * (1.0 + tf.reduce_max(tf.abs(logits)))
    return tf.reduce_any(greatest >= to_beat, axis=[0, 1])


def _of_each_cell(logits: tf.Tensor) -> tf.Tensor:
    """The greatest of the four corners of each cell of [height, width, slots]; a single row or column stays."""
    window = [min(2, side) for side in logits.shape[:2]]
    return tf.nn.max_pool2d(logits[tf.newaxis], window, 1, "VALID")[0]


def _upsampled(logits: tf.Tensor) -> tf.Tensor:
    """Bilinear with aligned corners: [h, w, slots] to [4 (h - 1) + 1, 4 (w - 1) + 1, slots]."""
    size = STRIDE * (tf.shape(logits)[:2] - 1) + 1
    return tf.raw_ops.ResizeBilinear(images=logits[tf.newaxis], size=size, align_corners=True)[0]
