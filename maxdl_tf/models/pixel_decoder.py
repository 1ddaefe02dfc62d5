"""The pixel decoder of kMaX-DeepLab, from deep to shallow features (architecture section 16.2)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.encoder import Stage


class PixelDecoder(keras.layers.Layer):
    """Blocks at each stride, from 32 on; between two strides, the encoder's normalized feature is added.

    Call with the encoder's un-activated features by name, `stage1` to `stage5`. Returns the un-activated output of each
    stage, deepest first. Has no config: `models.build` makes it of a variant.

    Args:
      stages: Blocks of each stage, deepest first.
      fuses: Nodes between the stages, one fewer. Each reads the stage before and the encoder's next shallower feature.
      recompute: Classes of layers that are recomputed in training; decides about the fuses.
    """

    def __init__(
        self, stages: Sequence[Stage], fuses: Sequence[ResizedFuse], *, recompute: tuple[type, ...] = (), **kwargs
    ):
        super().__init__(**kwargs)
        self.stages = {str(number): stage for number, stage in enumerate(stages)}
        self.fuses = {str(number): fuse for number, fuse in enumerate(fuses)}
        self.norms = {
            number: keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm{number}") for number in self.stages
        }
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def call(self, features: Mapping, training=None):
        normalized = {number: norm(features[f"stage{5 - int(number)}"]) for number, norm in self.norms.items()}
        x = normalized["0"]
        outputs = []
        for number, stage in self.stages.items():
            if outputs:
                fuse = self._recomputed(self.fuses[str(int(number) - 1)])
                skip = normalized[number]
                x = fuse([x, skip], spatial_size(skip), training=training)
            x, _, _ = stage((x, None), training=training)
            outputs.append(x)
        return outputs
