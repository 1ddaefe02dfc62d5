"""The heads and the auxiliary semantic branch of S against the reference."""

import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name
from maxdl_tf.keras_api import keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.models.heads import ClassHead, MaskHead, PixelHead, SemanticDecoder, SemanticHead
from tests.helpers import shared_golden
from tests.layers.golden_layers import check_golden, reference_norm

# The golden was taken inside of the reference's decoder, where some items have other names than in a checkpoint.
_NAMES_INSIDE = {
    "semantic_decoder/": "auxiliary_semantic_decoder/",
    "semantic_head_without_last_layer/": "auxiliary_semantic_head/conv_block/",
    "semantic_last_layer/": "auxiliary_semantic_head/final_conv/",
}


class Heads(keras.layers.Layer):
    """All that follows the two decoders, by the names it has in the model."""

    def __init__(self):
        super().__init__()
        self.pixel_head = PixelHead(24, 16, norm=reference_norm)
        self.mask_head = MaskHead(20, 16, norm=reference_norm)
        self.class_head = ClassHead(20, 133, norm=reference_norm)
        # The golden's memory features come from behind the heads' hidden layers.
        self.mask_head.hidden = self.class_head.hidden = keras.layers.Activation("linear")
        aspp = ASPP(24, rates=(6, 12, 18), pool_size=(5, 5), dropout=0.0, norm=reference_norm)
        self.semantic_decoder = SemanticDecoder(24, aspp, (12, 8), norm=reference_norm)
        self.semantic_head = SemanticHead(24, 134, norm=reference_norm)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, training):
        pixel_feature = self.pixel_head(inputs["feature_panoptic"], training=training)
        pyramid = self.semantic_decoder.aspp(inputs["feature_semantic"], training=training)
        semantic = self.semantic_decoder((pyramid, inputs["res3"], inputs["res2"]), training=training)
        mask_logits, _ = self.mask_head((pixel_feature, inputs["transformer_mask_feature"]), training=training)
        return {
            "pixel_space_normalized_feature": pixel_feature,
            "pixel_space_mask_logits": mask_logits,
            "transformer_class_logits": self.class_head(inputs["transformer_class_feature"], training=training),
            "semantic_logits": self.semantic_head(semantic, training=training),
        }


def name_inside(path: str) -> str:
    name = published_name(f"model/{path}")
    for published, inside in _NAMES_INSIDE.items():
        if name.startswith(published):
            name = inside + name[len(published) :]
    return f"_{name}"


def test_heads_equal_the_reference():
    check_golden(
        shared_golden("a_max_deeplab_head_s"),
        Heads(),
        lambda layer, inputs, training: layer(inputs, training=training),
        name=name_inside,
    )
