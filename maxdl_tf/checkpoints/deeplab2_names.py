"""Names of our variables in the published DeepLab2 checkpoints (architecture section 12)."""

from __future__ import annotations

import re

import tensorflow as tf

# From paths in `tf.train.Checkpoint(model=model)` to published items; at most one rule applies.
_ITEMS = (
    (r"^model/backbone/memory$", r"encoder/memory_feature"),
    # ConvNeXt, whose published stages and blocks count from 0.
    (r"^model/backbone/stem/patch_conv/", r"encoder/downsample_layers/0/layer_with_weights-0/"),
    (r"^model/backbone/stem/norm/", r"encoder/downsample_layers/0/layer_with_weights-1/"),
    (
        r"^model/backbone/stages/stage(\d)/blocks/downsample/(norm|conv)/",
        lambda found: f"encoder/downsample_layers/{int(found[1]) - 2}/layer_with_weights-{int(found[2] == 'conv')}/",
    ),
    (
        r"^model/backbone/stages/stage(\d)/blocks/block(\d+)/(?=depthwise_conv|norm|pointwise_conv|layer_scale)",
        lambda found: f"encoder/stages/{int(found[1]) - 2}/layer_with_weights-{int(found[2]) - 1}/",
    ),
    (r"^model/backbone/stem/", r"encoder/_stem/"),
    (r"^model/(?:backbone|decoder)/stages/(\w+)/blocks/(\w+)/", r"encoder/_\1/_\2/"),
    (r"^model/(?:backbone|decoder)/stages/(\w+)/transformers/(\w+)/", r"encoder/_\1/_\2_transformer/"),
    (r"^model/decoder/fuses/(\w+)/", r"encoder/_\1_resized_fuse/"),
    (r"^model/class_head/hidden/", r"encoder/_class_feature_extra/"),
    (r"^model/(?:predictor/)?class_head/logits/", r"transformer_class_head/_conv/"),
    (r"^model/mask_head/hidden/", r"encoder/_mask_feature_extra/"),
    (r"^model/(?:predictor/)?mask_head/embedding/", r"transformer_mask_head/"),
    (r"^model/(?:predictor/)?mask_head/batch_norm/", r"pixel_space_mask_batch_norm/"),
    (r"^model/(?:predictor/)?pixel_head/conv/", r"pixel_space_head/conv_block/_conv1_bn_act/"),
    (r"^model/(?:predictor/)?pixel_head/projection/", r"pixel_space_head/final_conv/"),
    (r"^model/(?:predictor/)?pixel_head/batch_norm/", r"pixel_space_feature_batch_norm/"),
    (r"^model/semantic_head/conv/", r"semantic_head_without_last_layer/_conv1_bn_act/"),
    (r"^model/semantic_head/logits/", r"semantic_last_layer/"),
    (r"^model/semantic_decoder/", r"semantic_decoder/"),
    # kMaX-DeepLab (architecture section 16).
    (r"^model/pixel_decoder/norms/", r"pixel_decoder/_backbone_norms/"),
    (r"^model/pixel_decoder/stages/(\d)/blocks/(\w+)/", r"pixel_decoder/_stages/\1/_\2/"),
    (
        r"^model/pixel_decoder/fuses/(\d)/projections/resized(\d)/",
        r"pixel_decoder/_skip_connections/\1/_resized_conv_bn\2/",
    ),
    (r"^model/transformer_decoder/memory$", r"transformer_decoder/cluster_centers"),
    (r"^model/transformer_decoder/transformers/(\d)/", r"transformer_decoder/_kmax_decoder/\1/_block1_transformer/"),
    (r"^model/transformer_decoder/(class|mask)_projection/", r"transformer_decoder/_\1_embedding_projection/"),
)

# From our names of parts of layers, between two slashes, to the published ones.
_PARTS = (
    # Heads inside the transformers of kMaX-DeepLab.
    (r"predictor/pixel_head/conv", r"_auxiliary_clustering_predictor/_pixel_space_head/conv_block/_conv1_bn_act"),
    (r"predictor/pixel_head/projection", r"_auxiliary_clustering_predictor/_pixel_space_head/final_conv"),
    (r"predictor/pixel_head/batch_norm", r"_auxiliary_clustering_predictor/_pixel_space_feature_batch_norm"),
    (r"predictor/mask_head/embedding", r"_auxiliary_clustering_predictor/_transformer_mask_head"),
    (r"predictor/mask_head/batch_norm", r"_auxiliary_clustering_predictor/_pixel_space_mask_batch_norm"),
    (r"predictor/class_head/logits", r"_auxiliary_clustering_predictor/_transformer_class_head/_conv"),
    (r"depthwise/conv(?=/depthwise_kernel)", r"_depthwise/_depthwise_conv"),
    (r"(conv(?=/kernel)|batch_norm|depthwise|pointwise|shortcut|attention|height_axis|width_axis|aspp)", r"_\1"),
    (r"(batch_norm_(?:qkv|similarity|retrieved_output|retrieved_value)|(?:memory|pixel)_attention)", r"_\1"),
    (r"(query|key|value)_positions", r"_\1_rpe/embeddings"),
    # Blocks: bottleneck and attention, basic; the Inception stem.
    (r"reduce|first|conv1", r"_conv1_bn_act"),
    (r"spatial|conv2", r"_conv2_bn_act"),
    (r"second", r"_conv2_bn"),
    (r"expand|conv3", r"_conv3_bn"),
    # Transformer.
    (r"(memory|pixel)_reduce", r"_\1_conv1_bn_act"),
    (r"(memory|pixel)_qkv", r"_\1_qkv_conv_bn"),
    (r"(memory|pixel)_expand", r"_\1_conv3_bn"),
    (r"pixel_value", r"_pixel_v_conv_bn"),
    (r"kmeans_expand", r"_kmeans_memory_conv3_bn"),
    (r"kmeans_batch_norm", r"_kmeans_memory_batch_norm_retrieved_value"),
    (r"memory_ffn1", r"_memory_ffn_conv1_bn_act"),
    (r"memory_ffn2", r"_memory_ffn_conv2_bn"),
    # Decoder nodes, semantic decoder.
    (r"projections/(resized|strided)(\d)", r"_\1_conv_bn\2"),
    (r"direct", r"_conv_bn_act"),
    (r"atrous(\d)", r"_aspp_conv\1/_conv_bn_act"),
    (r"pool", r"_aspp_pool/_conv_bn_act"),
    (r"project", r"_proj_conv_bn_act"),
    (r"low_level(\d)", r"_low_level_conv\1"),
    (r"fusion(\d)", r"_fusion_conv\1/_conv1_bn_act"),
)


def published_name(path: str) -> str:
    """The published object path of one of our variables.

    Args:
      path: Object path in `tf.train.Checkpoint(model=model)`, such as `model/backbone/stem/conv1/conv/kernel`, or path
        inside a layer of maxdl_tf/layers.

    Returns:
      The path without `/.ATTRIBUTES/VARIABLE_VALUE`, such as `encoder/_stem/_conv1_bn_act/_conv/kernel`.
    """
    for pattern, replacement in _ITEMS:
        path, count = re.subn(pattern, replacement, path)
        if count:
            break
    for pattern, replacement in _PARTS:
        path = re.sub(rf"(?<![^/])(?:{pattern})(?![^/])", replacement, path)
    return path


def variable_paths(root: tf.Module, prefix: str = "") -> dict[str, tf.Variable]:
    """The variables of an object by their object paths in a checkpoint.

    Args:
      root: Layer or model that is built.
      prefix: Beginning of each path, such as `model`.
    """
    view = tf.train.TrackableView(root)
    paths: dict[str, tf.Variable] = {}
    seen, queue = {id(root)}, [(prefix, root)]
    # Breadth first, like checkpoints, so that an object with several paths gets the same one.
    for path, parent in queue:
        for name, child in view.children(parent).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            child_path = f"{path}/{name}" if path else name
            if isinstance(child, tf.Variable):
                paths[child_path] = child
            queue.append((child_path, child))
    return paths
