import numpy as np

from maxdl_tf.inference.predictor import Prediction
from maxdl_tf.inference.score_filter import drop_unsure_segments
from maxdl_tf.inference.segments import Segment
from tests.inference.color_network import INFO


def test_segments_below_the_score_become_void_and_nothing_else_changes():
    label_map = np.array([[1001, 1001, 3000], [1002, 1001, 3000], [0, 1002, 1002]], np.int32)
    segments = [
        Segment(1001, 1, True, 0.4, 3, (0, 0, 2, 2)),
        Segment(1002, 1, True, 0.5, 3, (0, 1, 3, 2)),
        Segment(3000, 3, False, 0.9, 2, (2, 0, 1, 2)),
    ]
    prediction = Prediction(label_map, segments, np.zeros((*label_map.shape, 3), np.uint8), INFO)
    label_map.setflags(write=False)
    kept = drop_unsure_segments(prediction, 0.5, void=0)
    np.testing.assert_array_equal(kept.label_map, [[0, 0, 3000], [1002, 0, 3000], [0, 1002, 1002]])
    assert kept.segments == segments[1:]  # A score that is just the limit is enough.
    assert drop_unsure_segments(prediction, 0.0, void=0) is prediction
    everything_gone = drop_unsure_segments(prediction, 1.0, void=7)
    assert everything_gone.segments == [] and set(np.unique(everything_gone.label_map)) == {0, 7}
