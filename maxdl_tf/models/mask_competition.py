"""Which slot wins each pixel of one image, computed with as little work as the answer allows.

Three shortcuts leave the answer as it is:

- Masks that win no pixel are not resized, unless their slots are kept.
- Slots that are not kept take part with their maximum only; no softmax is taken over them.
- Padding at the right and at the bottom is left out until its pixels are requested.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.models.mask_bands import judge_in_bands

_ROUNDING = 1e-5  # Rounding of interpolation beyond its bounds, relative to the logits.


class Winners(NamedTuple):
    """The slots of a rectangle of pixels.

    Attributes:
      slot: int32 [height, width], the slot with the greatest mask logit.
      confidence: float32 [height, width], the greatest probability in a softmax over the kept slots. Where `slot` is
        kept, this is its own probability.
    """

    slot: tf.Tensor
    confidence: tf.Tensor


class MaskCompetition:
    """The masks of one image at the size of the network's input, evaluated for one rectangle at a time.

    Not for XLA: the number of kept slots is known only when it runs.

    Args:
      mask_logits: float32 [height / stride, width / stride, slots], of known shape.
      kept: bool [slots], the slots that may own pixels. Where another slot wins, nobody owns the pixel.
      stride: Input pixels per position of the logits.
    """

    def __init__(self, mask_logits: tf.Tensor, kept: tf.Tensor, stride: int):
        self._stride, num_slots = stride, mask_logits.shape[-1]
        self._any_kept = tf.reduce_any(kept)
        # The kernels need at least one slot in each group; a stand-in never wins.
        first = tf.one_hot(0, num_slots, on_value=True, off_value=False)
        self._kept = tf.where(tf.cond(self._any_kept, lambda: kept, lambda: first))[:, 0]
        rivals = tf.where(~kept & _may_win(mask_logits))[:, 0]
        self._rivals = tf.cond(tf.size(rivals) > 0, lambda: rivals, lambda: self._kept[:1])
        self._kept_logits = tf.gather(mask_logits, self._kept, axis=-1)
        self._rival_logits = tf.gather(mask_logits, self._rivals, axis=-1)

    def winners(
        self, height: tf.Tensor | int, width: tf.Tensor | int, top: tf.Tensor | int = 0, left: tf.Tensor | int = 0
    ) -> Winners:
        """The winners of a rectangle inside the network's input. The rectangle may be empty."""
        logits = (self._kept_logits, self._rival_logits)
        rectangle = {"height": height, "width": width, "top": top, "left": left}
        return Winners(*judge_in_bands(self._judge, logits, (tf.int32, tf.float32), stride=self._stride, **rectangle))

    def _judge(self, logits: tf.Tensor, rivals: tf.Tensor) -> Winners:
        best = tf.reduce_max(logits, axis=-1)
        kept_wins = (best >= tf.reduce_max(rivals, axis=-1)) & self._any_kept
        winner = tf.where(kept_wins, _best_of(self._kept, logits), _best_of(self._rivals, rivals))
        return Winners(
            slot=tf.cast(winner, tf.int32),
            confidence=1.0 / tf.reduce_sum(tf.exp(logits - best[..., tf.newaxis]), axis=-1),
        )


def _best_of(slots: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.gather(slots, tf.argmax(logits, axis=-1, output_type=tf.int32))


def _may_win(logits: tf.Tensor) -> tf.Tensor:
    """bool [slots]: False for slots of [height, width, slots] that win no pixel, wherever it lies between the logits.

    Between four logits, a slot stays between the least and the greatest of its own four. So a slot can win only if its
    greatest logit reaches the highest of all slots' least ones.
    """
    greatest = _max_of_cells(logits)
    least = -_max_of_cells(-logits)
    to_beat = tf.reduce_max(least, axis=-1, keepdims=True)
    to_beat -= _ROUNDING * (1.0 + tf.reduce_max(tf.abs(logits)))
    return tf.reduce_any(greatest >= to_beat, axis=[0, 1])


def _max_of_cells(logits: tf.Tensor) -> tf.Tensor:
    """Maximum of the four corners of each cell of [height, width, slots]; a single row or column stays."""
    window = [min(2, side) for side in logits.shape[:2]]
    return tf.nn.max_pool2d(logits[tf.newaxis], window, 1, "VALID")[0]
