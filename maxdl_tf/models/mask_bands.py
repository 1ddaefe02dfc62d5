"""Mask logits at the size of the network's input, a band of rows at a time: full maps of all slots are too large."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

_BAND_ROWS = 16  # Rows of pixels that are resized at a time.


def judge_in_bands(
    judge: Callable[..., Sequence[tf.Tensor]],
    logits: Sequence[tf.Tensor],
    dtypes: Sequence[tf.DType],
    *,
    stride: int,
    height: tf.Tensor | int,
    width: tf.Tensor | int,
    top: tf.Tensor | int = 0,
    left: tf.Tensor | int = 0,
) -> list[tf.Tensor]:
    """Maps of a rectangle inside the network's input. The rectangle may be empty.

    Args:
      judge: Function from the resized logits of some pixels, each [rows, columns, n], to maps [rows, columns].
      logits: Mask logits, each float32 [height / stride, width / stride, n], the first two sides known.
      dtypes: Type of each map.
      stride: Input pixels per position of the logits, a divisor of 16.
      height: Number of rows of the rectangle.
      width: Number of columns.
      top: First row.
      left: First column.

    Returns:
      The maps, each [height, width].
    """
    low_height, low_width = logits[0].shape[:2]
    band_cells = _BAND_ROWS // stride
    first_column = left // stride
    cells = tf.minimum((left + width - 1) // stride + 2, low_width) - first_column
    first_band = top // _BAND_ROWS
    num_bands = tf.maximum((top + height - 1) // _BAND_ROWS + 1 - first_band, 1)

    def judge_band(number, arrays):
        first_row = (first_band + number) * band_cells
        rows = tf.minimum(first_row + band_cells + 1, low_height) - first_row
        begin, size = tf.stack([first_row, first_column, 0]), tf.stack([rows, cells, -1])
        judged = judge(*(upsampled(tf.slice(x, begin, size), stride) for x in logits))
        # The last row of a band is also the first row of the next band, except in the last one.
        return number + 1, [array.write(number, field[:_BAND_ROWS]) for array, field in zip(arrays, judged)]

    arrays = [tf.TensorArray(dtype, num_bands, infer_shape=False, element_shape=[None, None]) for dtype in dtypes]
    _, arrays = tf.while_loop(
        lambda number, _: number < num_bands, judge_band, (tf.constant(0), arrays), parallel_iterations=1
    )
    top, left = top - first_band * _BAND_ROWS, left - first_column * stride
    return [array.concat()[top : top + height, left : left + width] for array in arrays]


def upsampled(logits: tf.Tensor, stride: int) -> tf.Tensor:
    """Bilinear with aligned corners: [h, w, slots] to [stride (h - 1) + 1, stride (w - 1) + 1, slots]."""
    size = stride * (tf.shape(logits)[:2] - 1) + 1
    return tf.raw_ops.ResizeBilinear(images=logits[tf.newaxis], size=size, align_corners=True)[0]
