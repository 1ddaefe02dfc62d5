"""Leaves out segments that the network is not sure of."""

from __future__ import annotations

from maxdl_tf.inference.predictor import Prediction


def drop_unsure_segments(prediction: Prediction, min_score: float, void: int) -> Prediction:
    """The prediction without the segments whose score is below `min_score`; their pixels become void.

    The segments are complete before: no other one takes the pixels over, and area limits have been applied.
    """
    unsure = [segment for segment in prediction.segments if segment.score < min_score]
    if not unsure:
        return prediction
    label_map = prediction.label_map.copy()
    for segment in unsure:
        left, top, width, height = segment.bbox
        box = label_map[top : top + height, left : left + width]
        box[box == segment.id] = void
    kept = [segment for segment in prediction.segments if segment.score >= min_score]
    return prediction._replace(label_map=label_map, segments=kept)
