"""Pastes the masks of one image in the order of their rank (kMaX-DeepLab; architecture section 9).

A mask claims the pixels where its probability exceeds a threshold of at least 1/3, so at most two masks claim a pixel.
Masks are therefore accepted by counts alone: of the pixels that each mask claims, and that each two masks share.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.models.mask_bands import judge_in_bands

_ROUNDING = 1e-5  # Rounding of probabilities.


class PastedMasks(NamedTuple):
    """The masks of one image at the size of the network's input, padding included.

    Attributes:
      slot: int32 [height, width], the slot whose mask is pasted on the pixel; elsewhere, that with the greatest logit.
      confidence: float32 [height, width], the greatest probability in a softmax over all slots.
      area: int32 [slots], number of pixels of each pasted mask; 0 if the mask is not pasted.
      rank: int32 [slots], rank of each slot among all slots, from 0.
    """

    slot: tf.Tensor
    confidence: tf.Tensor
    area: tf.Tensor
    rank: tf.Tensor


def paste_masks(
    mask_logits: tf.Tensor,
    class_confidence: tf.Tensor,
    kept: tf.Tensor,
    *,
    pixel_threshold: float,
    overlap_threshold: float,
    class_exponent: float,
    mask_exponent: float,
    stride: int,
) -> PastedMasks:
    """Pastes each mask on the pixels that it claims and that no mask before it owns.

    Not for XLA: the number of pixels that two masks claim is known only when it runs.

    Args:
      mask_logits: float32 [height / stride, width / stride, slots], of known shape.
      class_confidence: float32 [slots], probability of each slot's best class.
      kept: bool [slots], the slots whose masks may be pasted.
      pixel_threshold: Probability that a mask must exceed to claim a pixel, at least 1/3.
      overlap_threshold: Share of its claims that a mask must exceed to be pasted.
      class_exponent: Power of the class probability in the score that ranks masks.
      mask_exponent: Power of the mask's mean probability in this score.
      stride: Input pixels per position of the logits.
    """
    num_slots = mask_logits.shape[-1]
    score = class_confidence**class_exponent * _mean_probability(mask_logits, pixel_threshold) ** mask_exponent
    ranked = tf.argsort(score, direction="DESCENDING", stable=True)
    rank = tf.math.invert_permutation(ranked)
    first, second, confidence = _candidates(mask_logits, pixel_threshold, stride)
    pair = tf.where(confidence > pixel_threshold, num_slots * first + second, -1)
    pixels = tf.math.unsorted_segment_sum(tf.ones_like(pair), pair, num_slots * num_slots)
    candidates = tf.boolean_mask(ranked, tf.gather(kept, ranked))
    area = _accepted_area(tf.reshape(pixels, [num_slots, num_slots]), candidates, overlap_threshold)
    place = tf.where(area > 0, rank, num_slots)
    is_second = tf.gather(place, second) < tf.gather(place, first)
    return PastedMasks(tf.where(is_second, second, first), confidence, area, rank)


def _mean_probability(mask_logits: tf.Tensor, threshold: float) -> tf.Tensor:
    """float32 [slots], mean of each mask's probabilities above the threshold at the logits; 0 if there is none."""
    probability = tf.nn.softmax(mask_logits)
    above = probability > threshold
    total = tf.reduce_sum(tf.where(above, probability, 0.0), axis=[0, 1])
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(above, tf.float32), axis=[0, 1]))


def _candidates(mask_logits: tf.Tensor, threshold: float, stride: int) -> list[tf.Tensor]:
    """The slots that may claim each pixel of the network's input: three maps [height, width].

    The first is the slot with the greatest logit, int32. The second is the other slot that claims the pixel, or the
    first again. The third is the probability of the first slot, float32.
    """

    def judge(logits):
        first = tf.math.top_k(logits, 1).indices[..., 0]  # Faster than argmax.
        confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
        # Elsewhere, the first slot leaves too little to the others.
        torn = tf.where((confidence > threshold) & (confidence < 1.0 - threshold + _ROUNDING))
        two_best, slots = tf.math.top_k(tf.gather_nd(logits, torn), min(2, mask_logits.shape[-1]))
        share = tf.gather_nd(confidence, torn) * tf.exp(two_best[:, -1] - two_best[:, 0])
        second = tf.where(share > threshold, slots[:, -1], slots[:, 0])
        return first, tf.tensor_scatter_nd_update(first, torn, second), confidence

    height, width = (stride * (side - 1) + 1 for side in mask_logits.shape[:2])
    dtypes = (tf.int32, tf.int32, tf.float32)
    return judge_in_bands(judge, [mask_logits], dtypes, stride=stride, height=height, width=width)


def _accepted_area(pixels: tf.Tensor, candidates: tf.Tensor, overlap_threshold: float) -> tf.Tensor:
    """Accepts masks in turn if masks before them leave more than a share of their claims.

    Args:
      pixels: int32 [slots, slots], number of pixels of each first and second slot; the two are equal if only one slot
        claims the pixel.
      candidates: int32 [n], slots in their order.
      overlap_threshold: The share.

    Returns:
      int32 [slots], number of pixels that each mask owns; 0 if it is not accepted.
    """
    num_slots = pixels.shape[0]
    shared = tf.linalg.set_diag(pixels + tf.transpose(pixels), tf.zeros([num_slots], tf.int32))
    claimed = tf.linalg.diag_part(pixels) + tf.reduce_sum(shared, axis=1)

    def accept(place, area):
        slot = candidates[place]
        # A pixel of two masks has no third one. So all that a mask shares with an accepted one belongs to that one.
        free = claimed[slot] - tf.reduce_sum(tf.where(area > 0, shared[slot], 0))
        accepted = tf.cast(free, tf.float32) > overlap_threshold * tf.cast(claimed[slot], tf.float32)
        return place + 1, tf.tensor_scatter_nd_update(area, [[slot]], [tf.where(accepted, free, 0)])

    start = (tf.constant(0), tf.zeros([num_slots], tf.int32))
    return tf.while_loop(lambda place, _: place < tf.size(candidates), accept, start, parallel_iterations=1)[1]
