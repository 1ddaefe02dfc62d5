import numpy as np

from maxdl_tf.benchmarks.synthetic import synthetic_batch
from tests.losses.scenes import ODD


def test_a_batch_has_things_stuff_and_void_and_is_always_the_same():
    batch, again = (synthetic_batch(ODD, crop_size=(49, 65), batch_size=3, max_things=16) for _ in range(2))
    assert batch.images.shape == (3, 49, 65, 3) and batch.targets.thing_id_class.shape == (3, 16)
    assert batch.images.numpy().min() >= 0 and batch.images.numpy().max() <= 255
    classes = set(np.unique(batch.targets.semantic))
    assert classes & set(ODD.thing_ids) and classes & set(ODD.stuff_ids) and ODD.ignore_label in classes
    assert (batch.targets.thing_id_mask.numpy() >= 0).any()
    np.testing.assert_array_equal(batch.images, again.images)
    np.testing.assert_array_equal(batch.targets.semantic, again.targets.semantic)
