"""What counts as the same labels."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.errors import UserError
from maxdl_tf.export import verification
from maxdl_tf.export.verification import Agreement, Reference
from maxdl_tf.panoptic_ids import id_to_color
from tests.inference.color_network import CROP_SIZE, ColorNetwork, postprocessor, striped_image


@pytest.fixture(scope="module")
def reference():
    return Reference(ColorNetwork(), postprocessor(), CROP_SIZE)


@pytest.fixture(scope="module")
def encoded():
    return tf.io.encode_png(striped_image(*CROP_SIZE)[0]).numpy()


@pytest.fixture(scope="module")
def outputs(reference, encoded):
    """What an export gives that does all alike."""
    image = tf.io.decode_png(encoded)
    outputs = {name: value.numpy() for name, value in reference._network_outputs(image).items()}
    return {**outputs, "panoptic_map": reference._label_map(**outputs, image_size=tf.shape(image)[:2]).numpy()}


def test_equal_labels(reference, encoded, outputs):
    pixels = CROP_SIZE[0] * CROP_SIZE[1]
    assert reference.compare(encoded, outputs) == Agreement(pixels, segments=3, ties=0, differing=0)


def test_labels_that_do_not_follow_from_the_outputs_are_never_ties(reference, encoded, outputs):
    panoptic = outputs["panoptic_map"].copy()
    panoptic[3, 4] += 1
    agreement = reference.compare(encoded, {**outputs, "panoptic_map": panoptic})
    assert (agreement.ties, agreement.differing) == (0, 1)
    assert agreement.share == 1 - 1 / agreement.pixels


@pytest.mark.parametrize("error, are_ties", [(0.5, True), (50.0, False)])
def test_other_labels_are_ties_if_rounding_of_the_outputs_explains_them(
    reference, encoded, outputs, error, are_ties, monkeypatch
):
    """One pixel's logits are changed until another slot wins: by little only where both were near each other."""
    reference_outputs = {"mask_logits": outputs["mask_logits"].copy(), "class_logits": outputs["class_logits"]}
    pixel = reference_outputs["mask_logits"][0, 0, 0]
    pixel[:] = -500.0
    pixel[:2] = [error / 2, 0.0]
    changed = {name: value.copy() for name, value in reference_outputs.items()}
    changed["mask_logits"][0, 0, 0, :2] = [0.0, error / 2]
    exported = {**changed, "panoptic_map": reference._label_map(**changed, image_size=tf.constant(CROP_SIZE)).numpy()}
    unmoved = {name: tf.constant(value) for name, value in reference_outputs.items()}
    monkeypatch.setattr(reference, "_moved_outputs", lambda image, units: unmoved)
    assert reference._proves_ties(tf.io.decode_png(encoded), reference_outputs, exported) == are_ties


class JumpingNetwork(ColorNetwork):
    """As with k-means: one pixel is near a tie, and turning it shifts a mask by 2 % of the largest logit."""

    def call(self, images, training=False):
        outputs = super().call(images)
        jump = tf.where(images[0, 0, 0, 0] > 255.001, 2.0, 0.0)
        return outputs._replace(mask_logits=outputs.mask_logits + jump * [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "network, jump, are_ties", [(JumpingNetwork, 2.0, True), (JumpingNetwork, 30.0, False), (ColorNetwork, 2.0, False)]
)
def test_outputs_may_jump_if_those_of_the_model_do(encoded, outputs, network, jump, are_ties):
    reference = Reference(network(), postprocessor(), CROP_SIZE)
    of_model = {name: outputs[name] for name in ("mask_logits", "class_logits")}
    changed = {**of_model, "mask_logits": of_model["mask_logits"] + np.float32([jump, 0, 0, 0])}
    exported = {**changed, "panoptic_map": reference._label_map(**changed, image_size=tf.constant(CROP_SIZE)).numpy()}
    assert reference._proves_ties(tf.io.decode_png(encoded), of_model, exported) == are_ties


@pytest.mark.parametrize("options", [{"overlap_threshold": 0.8}, {"split_min_area": 1}])
def test_ranks_and_parts_may_have_other_numbers(encoded, outputs, options):
    """Not so if two become one, or if their classes change; and not in plain pixel-wise post-processing."""
    reference = Reference(ColorNetwork(), postprocessor(**options), CROP_SIZE)
    panoptic = outputs["panoptic_map"]  # 1001, 1002 and 3000.
    pixels = {label: int((panoptic == label).sum()) for label in np.unique(panoptic)}

    def differing(*changes):
        changed = panoptic.copy()
        for old, new in changes:
            changed[panoptic == old] = new
        return reference.compare(encoded, {**outputs, "panoptic_map": changed}).differing

    assert differing() == differing((1001, 1002), (1002, 1001)) == differing((1001, 1007)) == 0
    assert differing((1001, 1002)) == min(pixels[1001], pixels[1002])
    assert differing((1001, 3000)) == pixels[1001]
    pixel_wise = Reference(ColorNetwork(), postprocessor(), CROP_SIZE)
    changed = np.where(panoptic == 1001, 1007, panoptic)
    assert pixel_wise.compare(encoded, {**outputs, "panoptic_map": changed}).differing == pixels[1001]


def test_the_png_must_be_the_map(reference, outputs):
    png = id_to_color(outputs["panoptic_map"])
    for fine in (outputs, {**outputs, "panoptic_png": png}):
        reference.check_png(fine)
    png[3, 4, 0] ^= 1
    with pytest.raises(RuntimeError, match="panoptic_png returns another map than serving_default"):
        reference.check_png({**outputs, "panoptic_png": png})


def test_another_size_agrees_nowhere(reference, encoded, outputs):
    agreement = reference.compare(encoded, {**outputs, "panoptic_map": outputs["panoptic_map"][1:]})
    assert agreement.share == 0.0


def test_the_summary_names_what_is_not_equal():
    assert Agreement(100, 3, 0, 0).summary() == "labels equal on 100 pixels (3 segments)"
    some = Agreement(100, 3, 2, 5).summary()
    assert some == "labels equal on 93 pixels and tied on 2 and different on 5 (95.00 % equal) (3 segments)"


def test_no_images_are_refused(reference, tmp_path):
    with pytest.raises(UserError, match="no images to compare on"):
        verification.verify(reference, str(tmp_path), {})


def test_the_runner_ends_with_the_process_that_started_it():
    """Its stdin is a pipe that closes then. Without that, it would complain about the missing model."""
    command = [sys.executable, "-I", verification.RUNNER, "none", "none", "none"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")


class ChaoticNetwork(ColorNetwork):
    """One unit in the last place of a pixel's value changes its mask."""

    def call(self, images, training=False):
        outputs = super().call(images)
        brightness = tf.reduce_max(images[:, ::4, ::4], axis=-1, keepdims=True)
        noise = tf.sin(1e5 * brightness + tf.constant([0.0, 2.0, 4.0, 6.0]))
        return outputs._replace(mask_logits=100.0 * noise)


@pytest.mark.parametrize(
    "network, error, message",
    [
        (ColorNetwork, RuntimeError, "on image one only 0.0000% of the exported model's labels"),
        (
            ChaoticNetwork,
            UserError,
            r"image one cannot be compared, because rounding decides .* the export has \d+.\d+% other",
        ),
    ],
)
def test_a_model_whose_labels_rounding_decides_is_told_from_a_wrong_export(
    network, error, message, encoded, outputs, tmp_path, monkeypatch
):
    def run(saved_model, images, folder):
        np.savez(tmp_path / "one.npz", **{**outputs, "panoptic_map": outputs["panoptic_map"] + 1})
        return {"one": str(tmp_path / "one.npz")}

    monkeypatch.setattr(verification, "run_in_fresh_process", run)
    reference = Reference(network(), postprocessor(), CROP_SIZE)
    share = reference.turned_share(encoded)
    assert share > 0.3 if network is ChaoticNetwork else share == 0.0
    with pytest.raises(error, match=message):
        verification.verify(reference, "export", {"one": encoded})
