"""The full models have the published variables, name by name and shape by shape."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.models.build import build_max_deeplab, build_panoptic_model
from maxdl_tf.models.variants import VARIANTS
from maxdl_tf.training.optimizers import kernels_of
from tests.helpers import shared_path

# Drop path's keep probabilities, block by block (architecture section 3).
KEEPS = {
    "s": [1.0] * 8 + [0.85] * 6 + [0.8] * 2 + [0.8] + [1.0] * 2,
    "l": [1.0] * 4
    + [0.95] * 3
    + [0.9] * 6
    + [0.85] * 3
    + [0.8] * 2
    + [0.9, 0.95, 0.9, 0.8]
    + [0.8] * 3
    + [0.9] * 3
    + [0.95] * 3
    + [0.9] * 3
    + [0.8] * 3
    + [0.9] * 3
    + [0.95] * 3,
}


def _keeps(model) -> list[float]:
    """Keep probabilities of all blocks; a transformer has that of its block."""
    keeps = []
    for stage in (*model.backbone.stages.values(), *model.decoder.stages.values()):
        for name, block in stage.blocks.items():
            keeps.append(block.drop_path.keep)
            if name in stage.transformers:
                transformer = stage.transformers[name]
                for branch in (transformer.memory_drop_path, transformer.ffn_drop_path, transformer.pixel_drop_path):
                    assert branch.keep == block.drop_path.keep
    return keeps


@pytest.mark.parametrize(("name", "crop", "parameters"), [("s", 641, 61_900_200), ("l", 1025, 450_763_880)])
def test_variables(name, crop, parameters):
    # In a graph of its own the variables have shapes and names but no memory.
    with tf.Graph().as_default():
        model = build_max_deeplab(VARIANTS[name], num_classes=133, num_semantic_channels=134, crop_size=(crop, crop))
    assert _keeps(model) == pytest.approx(KEEPS[name])
    lines = shared_path("reference", f"deeplab2_{name}_variables.txt").read_text().splitlines()
    published = {key: (shape, kind) for key, shape, kind in (line.split("\t") for line in lines)}
    ours = {published_name(path): variable for path, variable in variable_paths(model, "model").items()}
    assert sorted(ours) == sorted(published)
    for key, variable in ours.items():
        shape, kind = published[key]
        assert (str(tuple(variable.shape)), variable.trainable) == (shape, kind == "trainable"), key

    without_semantic = [v for key, v in ours.items() if v.trainable and not key.startswith("semantic_")]
    assert sum(int(np.prod(variable.shape)) for variable in without_semantic) == parameters

    # The groups of the two learning rates. L's list was made at widths at which stage 2 starts without a projection.
    lines = shared_path("reference", f"lr_groups_{name}.txt").read_text().splitlines()
    rates = {key: rate for rate, key, _ in (line.split("\t") for line in lines)}
    trainable = {key for key, variable in ours.items() if variable.trainable}
    assert all(key.startswith("encoder/_stage2/_block1/_shortcut/") for key in trainable - set(rates))
    backbone = {id(variable) for variable in model.backbone_variables}
    for key, rate in rates.items():
        assert (id(ours[key]) in backbone) == (rate == "0.1x"), key


@pytest.mark.parametrize(
    ("variant", "listed", "parameters", "all_variables"),
    [
        ("kmax_r50", "kmax_r50", 56_580_120, 1184),
        pytest.param("kmax_axial_r50", None, 74_415_512, 1410, marks=pytest.mark.slow),
        ("kmax_convnext_t", "kmax_convnext_tiny", 60_937_080, 1102),
        pytest.param("kmax_convnext_s", None, 82_571_640, 1264, marks=pytest.mark.slow),
        pytest.param("kmax_convnext_b", None, 121_513_304, 1264, marks=pytest.mark.slow),
        pytest.param("kmax_convnext_l", None, 231_836_952, 1264, marks=pytest.mark.slow),
    ],
)
def test_variables_of_kmax(variant, listed, parameters, all_variables):
    with tf.Graph().as_default():
        model = build_panoptic_model(
            VARIANTS[variant], num_classes=133, num_semantic_channels=134, crop_size=(1281, 1281)
        )
    ours = {published_name(path): variable for path, variable in variable_paths(model, "model").items()}
    assert len(ours) == len(model.variables) == all_variables
    without_semantic = [v for key, v in ours.items() if v.trainable and not key.startswith("semantic_")]
    assert sum(int(np.prod(variable.shape)) for variable in without_semantic) == parameters
    if listed is None:
        return
    lines = shared_path("reference", f"{listed}_variables.txt").read_text().splitlines()
    published = {key: rest for key, *rest in (line.split("\t") for line in lines)}
    assert sorted(ours) == sorted(published)
    backbone = {id(v) for v in model.backbone_variables}
    decayed = {id(v) for v in kernels_of(model)}
    for key, v in ours.items():
        rate = "-" if not v.trainable else "0.1x" if id(v) in backbone else "1x"
        kind = "trainable" if v.trainable else "state"
        assert [str(tuple(v.shape)), kind, rate, "decayed" if id(v) in decayed else "-"] == published[key], key
