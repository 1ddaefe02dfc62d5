"""Imports published ImageNet weights of EfficientNet-Lite0: all of the encoder, or an error that lists what differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from maxdl_tf.checkpoints.compare import compare
from maxdl_tf.checkpoints.deeplab2_import import Imported, ImportMismatch
from maxdl_tf.checkpoints.deeplab2_names import variable_paths
from maxdl_tf.errors import UserError
from maxdl_tf.models.efficientnet_lite import Stem
from maxdl_tf.models.image_classifier import ImageClassifier
from maxdl_tf.models.network import PanopticNetwork

_BLOCK = re.compile(r"backbone/stages/stage(\d)/blocks/block(\d+)/(expand|depthwise|project)/(.*)")
# Convolution and batch norm of each part of a block, and of what is outside of blocks.
_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
_OUTSIDE = {"backbone/stem/conv": ("_conv_stem", "_bn0"), "classifier_conv": ("_conv_head", "_bn1")}
_CLASSIFIER = {"classifier/kernel": "_fc.weight", "classifier/bias": "_fc.bias"}
_OF_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
_COUNTER = ".num_batches_tracked"
# Order of the file's axes in the variables of convolutions, and names of those of batch norms.
_CONVOLUTIONS = {"conv/kernel": (2, 3, 1, 0), "conv/depthwise_kernel": (2, 3, 0, 1)}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def import_weights(model: PanopticNetwork | ImageClassifier, weights: Mapping[str, np.ndarray], path: str) -> Imported:
    """Loads weights of EfficientNet-Lite0: the encoder of a panoptic model, or all of an image classifier.

    Args:
      model: Model of the variant `lite` whose variables exist.
      weights: Arrays by their published names.
      path: Path of their file, for messages.

    Raises:
      ImportMismatch: A weight is missing, has another shape, or belongs to another model. Nothing was changed.
      UserError: The model has another encoder.
    """
    if not isinstance(model.backbone.stem, Stem):
        raise UserError(
            f"{path} is for EfficientNet-Lite0, but the config's model has another encoder; set variant: lite"
        )
    found = {name: value for name, value in weights.items() if not name.endswith(_COUNTER)}
    left_out = []
    if not isinstance(model, ImageClassifier):
        left_out = [name for name in found if name.startswith(_OF_CLASSIFIER)]
    variables = variable_paths(model)
    names = published_names(variables)
    path_of = {name: variable_path for variable_path, name in names.items()}
    values = {
        path_of.get(name, name): _in_our_order(path_of.get(name, ""), value)
        for name, value in found.items()
        if name not in left_out
    }
    difference = compare(
        {name: value.shape for name, value in values.items()}, {name: tuple(variables[name].shape) for name in names}
    )
    if not difference.is_none:
        raise ImportMismatch(
            f"{path} does not fit; {difference.summary()}; wanted weights of EfficientNet-Lite0, and variant: lite "
            "with its own widths",
            difference,
        )
    for name, value in values.items():
        variables[name].assign(value)
    return Imported(0, sorted(path_of), [], sorted(left_out), {f"model/{name}": variables[name] for name in values})


def published_names(paths: Iterable[str]) -> dict[str, str]:
    """{path of a variable: its name in the file}, of the encoder and the classifier of images."""
    matches = {path: _BLOCK.fullmatch(path) for path in paths}
    places = {(int(match.group(1)), int(match.group(2))) for match in matches.values() if match}
    numbers = {place: number for number, place in enumerate(sorted(places))}
    names = {}
    for path, match in matches.items():
        if path in _CLASSIFIER:
            names[path] = _CLASSIFIER[path]
        elif match:
            prefix = f"_blocks.{numbers[int(match.group(1)), int(match.group(2))]}."
            names[path] = prefix + _name_in_part(_PARTS[match.group(3)], match.group(4))
        else:
            for part, layers in _OUTSIDE.items():
                if path.startswith(f"{part}/"):
                    names[path] = _name_in_part(layers, path.removeprefix(f"{part}/"))
    return names


def _name_in_part(layers: tuple[str, str], variable: str) -> str:
    convolution, norm = layers
    if variable in _CONVOLUTIONS:
        return f"{convolution}.weight"
    return f"{norm}.{_NORM[variable.removeprefix('batch_norm/')]}"


def _in_our_order(path: str, value: np.ndarray) -> np.ndarray:
    axes = next((axes for end, axes in _CONVOLUTIONS.items() if path.endswith(f"/{end}")), None)
    if path == "classifier/kernel":
        axes = (1, 0)
    return np.transpose(value, axes) if axes and value.ndim == len(axes) else value
