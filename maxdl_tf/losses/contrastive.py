"""The pixel-contrastive loss on a sample of the pixels (kMaX-DeepLab; CMT-DeepLab, arXiv 2206.08948, section 3.2)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.losses.target_masks import TargetMasks, sum_over_rows
from maxdl_tf.losses.terms import mean_of_counted

_VOID_LOGIT = -99999.0


def sample_pixels(masks: TargetMasks, uniform: tf.Tensor, count: int, area_temperature: float) -> tf.Tensor:
    """Draws pixels without replacement, those of small masks more often (architecture section 6).

    The weight of a pixel is (pixels of the image / pixels of its mask) ^ `area_temperature`, by Gumbel top-k. Crowd
    pixels weigh as those of a mask of one pixel. Void pixels come last.

    Args:
      masks: Ground truth.
      uniform: float32 [batch, pixels], random numbers in [0, 1).
      count: Number of pixels to draw; all if the image has fewer.
      area_temperature: Exponent of the weights, at most 100. 0: all pixels that are not void weigh the same.

    Returns:
      int32 [batch, min(count, pixels)], numbers of the pixels.
    """
    row = masks.row_of_pixel
    area = tf.gather(masks.area, tf.maximum(row, 0), batch_dims=1) * masks.in_row  # [batch, pixels]
    pixels = row.shape[1] or tf.shape(row)[1]  # XLA draws a constant number.
    share = tf.cast(pixels, tf.float32) / tf.maximum(area, 1.0)
    logit = area_temperature * tf.math.log(share) + _VOID_LOGIT * (1.0 - masks.non_void)
    gumbel = -tf.math.log(-tf.math.log(uniform))
    return tf.math.top_k(logit + gumbel, min(count, pixels) if row.shape[1] else tf.minimum(count, pixels)).indices


def pixel_contrastive_loss(
    masks: TargetMasks,
    pixel_feature: tf.Tensor,
    sample: tf.Tensor,
    temperature: float,
    zeros_count: bool = True,
) -> tf.Tensor:
    """Mean over sampled pixels of the cross entropy between their similarities and the pixels of the same mask.

    The target of a pixel is spread evenly over the sampled pixels of its mask, itself included. Crowd and void pixels
    have no target; they are negatives of the others.

    Images are computed one after the other, each with its gradient. The similarities of all pairs of 4096 samples take
    64 MiB an image, and none are kept for the backward pass.

    Args:
      masks: Ground truth.
      pixel_feature: float32 [batch, pixels, channels].
      sample: int32 [batch, samples], from `sample_pixels`.
      temperature: Divisor of the similarities.
      zeros_count: See `mean_of_counted`.

    Returns:
      float32 [batch]; 0 where no sampled pixel belongs to a mask.
    """
    num_rows = masks.area.shape[1]

    def with_gradient(image):
        feature, row = image
        with tf.GradientTape() as tape:
            tape.watch(feature)
            loss = _contrastive_loss(feature, row, num_rows, temperature, zeros_count)
        return loss, tape.gradient(loss, feature)

    @tf.custom_gradient
    def loss_of(feature, row):
        shape = tf.TensorSpec(feature.shape[1:])
        loss, gradient = tf.map_fn(
            with_gradient, (feature, row), fn_output_signature=(tf.TensorSpec([]), shape), parallel_iterations=1
        )
        return loss, lambda upstream: (upstream[:, tf.newaxis, tf.newaxis] * gradient, None)

    feature = tf.gather(pixel_feature, sample, batch_dims=1)
    return loss_of(feature, tf.gather(masks.row_of_pixel, sample, batch_dims=1))


def _contrastive_loss(
    feature: tf.Tensor, row: tf.Tensor, num_rows: int, temperature: float, zeros_count: bool
) -> tf.Tensor:
    """The loss of an image: features [samples, channels], and the row of each, -1 for none."""
    feature, row = feature[tf.newaxis], row[tf.newaxis]
    in_row = tf.cast(row >= 0, tf.float32)  # [1, samples]
    scaled = feature / temperature
    # The mean similarity with the pixels of a row is the similarity with their mean.
    count = sum_over_rows(in_row[..., tf.newaxis], row, num_rows)
    mean = tf.math.divide_no_nan(sum_over_rows(scaled, row, num_rows), count)  # [1, rows, channels]
    positive = tf.reduce_sum(feature * tf.gather(mean, tf.maximum(row, 0), batch_dims=1), axis=-1)
    log_sum = tf.reduce_logsumexp(tf.matmul(feature, scaled, transpose_b=True), axis=-1)
    loss = mean_of_counted((log_sum - positive) * in_row, in_row, zeros_count)
    return loss[0]
