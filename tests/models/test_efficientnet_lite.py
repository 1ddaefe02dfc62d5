"""EfficientNet-Lite as an encoder: published sizes, alignment of features, skips, frozen training."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.models.build import build_image_classifier
from maxdl_tf.models.efficientnet_lite import MBConv, efficientnet_lite_encoder
from maxdl_tf.models.variants import VARIANTS, StageTable


@pytest.fixture(scope="module")
def encoder():
    """A narrow one with nothing left at its initial value."""
    made = efficientnet_lite_encoder(4, (1, 2, 1, 1, 1, 2, 1), (4, 4, 6, 6, 8, 8, 10))
    made(tf.zeros([1, 33, 33, 3]))
    random = np.random.default_rng(0)
    made.set_weights([random.uniform(0.3, 1.0, weight.shape) for weight in made.get_weights()])
    return made


def test_lite0_has_its_published_parameters():
    with tf.Graph().as_default():
        model = build_image_classifier(VARIANTS["lite"], num_classes=1000, crop_size=(225, 225))
        count = sum(variable.shape.num_elements() for variable in model.trainable_variables)
    assert count == 4_652_008


@pytest.mark.parametrize("sides", [(65, 97), (64, 96)])
def test_strides_and_widths(encoder, sides):
    features, memory, auxiliary = encoder(tf.zeros([2, *sides, 3]))
    assert (memory, auxiliary) == (None, ())
    for number, width in enumerate((4, 4, 6, 8, 10), start=1):
        size = [-(-side // 2**number) for side in sides]
        assert features[f"stage{number}"].shape == [2, *size, width]


def test_features_stay_aligned_at_the_corners(encoder):
    """With kernels that are their own mirror image, features of a mirrored image are mirrored."""
    for layer in encoder.submodules:
        for name in ("kernel", "depthwise_kernel"):
            kernel = getattr(layer, name, None)
            if isinstance(kernel, tf.Variable):
                kernel.assign((kernel + kernel[:, ::-1]) / 2)
    images = tf.random.stateless_uniform([1, 65, 65, 3], (0, 0), -1.0)
    features, of_mirrored = encoder(images)[0], encoder(images[:, :, ::-1])[0]
    for name, feature in features.items():
        mirrored = of_mirrored[name][:, :, ::-1]
        np.testing.assert_allclose(feature, mirrored, rtol=1e-4, atol=1e-4 * np.abs(feature).max(), err_msg=name)


def test_a_block_skips_only_where_the_shape_stays():
    for channels, strides in ((6, 1), (8, 1), (6, 2)):
        block = MBConv(24, channels, 5, strides=strides)
        inputs = tf.random.stateless_normal([2, 9, 9, 6], (0, 1))
        block(inputs)
        block.project.batch_norm.gamma.assign(tf.zeros([channels]))  # Silences the branch.
        skips = (channels, strides) == (6, 1)
        np.testing.assert_array_equal(block(inputs), inputs if skips else tf.zeros_like(block(inputs)))


def test_drop_path_falls_linearly():
    made = efficientnet_lite_encoder(4, (1, 2, 1, 1, 1, 2, 1), (4, 4, 4, 4, 4, 4, 4), drop_path_keep=0.6)
    keeps = [block.drop_path.keep for stage in made.stages.values() for block in stage.blocks.values()]
    np.testing.assert_allclose(keeps, np.linspace(1.0, 0.6, 9))


def test_other_stages_are_refused():
    with pytest.raises(ValueError, match=r"stages \[1, 2\]: must be 1 to 7"):
        type(VARIANTS["lite"])(encoder="efficientnet_lite", stages={1: StageTable(1, 8), 2: StageTable(1, 8)})
