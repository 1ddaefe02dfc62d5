"""Cross entropy of the auxiliary semantic branch (architecture section 6)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.losses.reduction import mean_over_nonzeros
from maxdl_tf.losses.target_masks import at_output_stride
from maxdl_tf.structs import PanopticTargets


def semantic_loss(targets: PanopticTargets, semantic_logits: tf.Tensor, ignore_label: int) -> tf.Tensor:
    """Mean over labeled pixels of the weighted cross entropy.

    Args:
      targets: The ground truth.
      semantic_logits: float32 [batch, pixels, semantic channels]; a class's id is its channel.
      ignore_label: Pixels of this id are left out.

    Returns:
      float32 [batch], not weighted.
    """
    label = at_output_stride(targets.semantic)
    weight = at_output_stride(targets.semantic_weight) * tf.cast(label != ignore_label, tf.float32)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=semantic_logits)
    return mean_over_nonzeros(weight * cross_entropy)
