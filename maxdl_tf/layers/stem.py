"""The first convolutions of the network (architecture section 3).

The convolutional stem of L is a single `Conv2DBatchNorm`; S has the Inception stem below.
"""

from __future__ import annotations

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.recompute import recomputed


class InceptionStem(keras.layers.Layer):
    """Three 3x3 convolutions in place of ResNet's 7x7: `channels`, `channels`, 2 x `channels`.

    Image [batch, height, width, 3] -> un-activated [batch, height/2, width/2, 2 * channels]. With `recompute`, training
    keeps the image only, and computes the rest again for the gradient.
    """

    def __init__(self, channels: int, *, norm: NormFactory = BatchNorm, recompute: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.recompute = recompute
        self.conv1 = Conv2DBatchNorm(channels, 3, strides=2, relu=True, norm=norm, name="conv1")
        self.conv2 = Conv2DBatchNorm(channels, 3, relu=True, norm=norm, name="conv2")
        self.conv3 = Conv2DBatchNorm(2 * channels, 3, norm=norm, name="conv3")

    def call(self, inputs, training=None):
        def run(inputs):
            x = self.conv1(inputs, training=training)
            x = self.conv2(x, training=training)
            return self.conv3(x, training=training)

        return recomputed(run, when=self.recompute and bool(training))(inputs)
