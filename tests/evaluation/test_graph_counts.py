"""Counts in a graph are NumPy's."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.evaluation.graph_counts import count_in_graph
from maxdl_tf.evaluation.quality import PanopticQuality

# Things 1 and 4, stuff 2; void is 5.
INFO = DatasetInfo(
    "small", tuple(SegmentClass(i, str(i), i != 2, (0, 0, 0), i) for i in (1, 2, 4)), label_divisor=100, ignore_label=5
)
LABELS = np.array([100, 101, 102, 200, 400, 401, 500])  # Crowds 100 and 400.


def random_pairs(number):
    rng = np.random.default_rng(0)
    for share_changed in np.linspace(0, 0.9, number):
        truth = LABELS[rng.integers(0, 7, rng.integers(1, 7, 2))].repeat(3, axis=0).repeat(4, axis=1)
        noise = LABELS[rng.integers(0, 7, truth.shape)]
        yield truth, np.where(rng.random(truth.shape) < share_changed, noise, np.roll(truth, 1))
    yield np.full((3, 3), 500), np.full((3, 3), 101)
    yield np.full((3, 3), 101), np.full((3, 3), 500)
    yield np.int32([[101, 101, 200, 200]]), np.int32([[101, 200, 200, 200]])  # An IoU of a half.


@pytest.mark.parametrize("ignore_crowd", [True, False])
def test_as_numpy(ignore_crowd):
    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2)
    def count(truth, prediction):
        return count_in_graph(truth, prediction, INFO, ignore_crowd=ignore_crowd)

    total = np.zeros((3, 6), int)
    for truth, prediction in random_pairs(150):
        metric = PanopticQuality(INFO, ignore_crowd=ignore_crowd)
        metric.update(truth, prediction)
        want = [field[0] for field in metric.result().image_counts]
        iou, *found = (field.numpy() for field in count(truth.astype(np.int32), prediction.astype(np.int32)))
        np.testing.assert_array_equal(found, want[1:])
        np.testing.assert_allclose(iou, want[0], rtol=1e-14)
        total += found
    assert (total[:, [1, 2, 4]] > 10).all() and (total[:, [0, 3, 5]] == 0).all()
    graph = count.get_concrete_function().graph.as_graph_def()
    used = {node.op for node in graph.node} | {node.op for part in graph.library.function for node in part.node_def}
    assert "UnsortedSegmentSum" in used and not [op for op in used if "PyFunc" in op]
