"""Instance discrimination: features of a pixel resemble those of its mask."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.losses.reduction import mean_over_nonzeros, weighted_mean
from maxdl_tf.losses.target_masks import TargetMasks, sum_over_rows

_INVALID_LOGIT = -99999.0


def instance_discrimination_loss(
    masks: TargetMasks, pixel_feature: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy of thing pixels over the mean features of all masks of the image.

    The gradient flows through the means as well.

    Args:
      masks: The ground truth.
      pixel_feature: float32 [batch, pixels, channels], L2-normalized.
      temperature: Divides the cosine similarities, 0.3 in the paper.

    Returns:
      (loss, accuracy), float32 [batch] each, not weighted. The accuracy is the share of thing pixels
      that are most like their own mask; 0 where the image has no thing.
    """
    num_rows = masks.area.shape[1]
    total = sum_over_rows(pixel_feature, masks.row_of_pixel, num_rows)
    mask_feature = tf.math.l2_normalize(total / tf.maximum(masks.area, 1.0)[..., tf.newaxis], axis=-1)
    logits = tf.matmul(pixel_feature, mask_feature / temperature, transpose_b=True)  # [batch, pixels, rows]
    logits += tf.where(masks.valid, 0.0, _INVALID_LOGIT)[:, tf.newaxis, :]

    row = tf.maximum(masks.row_of_pixel, 0)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=row, logits=logits)
    own_logit = tf.gather(logits, row, batch_dims=2)
    correct = tf.cast(own_logit >= tf.reduce_max(logits, axis=-1), tf.float32)
    return mean_over_nonzeros(masks.is_thing * cross_entropy), weighted_mean(tf.stop_gradient(correct), masks.is_thing)
