"""`tile` in a data set: evaluation, exports and loaded predictors go over images in tiles, with the same result."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import maxdl_tf
from maxdl_tf import config
from maxdl_tf.data_gen import shapes
from maxdl_tf.errors import UserError
from maxdl_tf.inference.tiles import TiledPredictor
from maxdl_tf.panoptic_ids import decode_label, encode_label
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.helpers import in_process

TILES = "eval_dataset { crop_size: 33 tile: 40 tile_overlap: 16 }"
SMALL = [
    "model { width { multiplier: 0.5 stem_multiplier: 0.5 } }",
    "model { postprocess { class_threshold: 0 pixel_threshold: 0 thing_area_limit: 1 stuff_area_limit: 1 } }",
    "train_dataset { crop_size: 33 batch_size: 2 tile: 40 }",
]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads the small experiment with more overrides."""
    folder = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 2), ("val", 3)):
        size = ("--height=70", "--width=90", f"--split={split}", f"--count={count}")
        assert in_process(shapes, *size, "--output_dir", folder) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAPES_TFRECORDS", str(folder))
        yield lambda *overrides: config.load_experiment("shapes/max_deeplab_tiny_81", [*SMALL, *overrides])


def test_the_evaluation_measures_what_the_tiled_predictor_predicts(load):
    task = PanopticTask(load(TILES), for_training=True)
    model = task.build_model()
    shown = []
    evaluator = task.build_evaluation(
        tf.distribute.get_strategy(), model, show_picture=lambda name, picture: shown.append(picture), num_pictures=1
    )
    evaluator.evaluate(tf.constant(-1))

    predictor, network = PanopticTask(load(TILES)).build_predictor(None)
    for mine, trained in zip(network.variables, model.without_semantic_branch().variables):
        mine.assign(trained)
    tiled = predictor.in_tiles()
    metric = maxdl_tf.PanopticQuality(tiled.dataset_info)
    divisors = task.dataset_info.label_divisor, tiled.dataset_info.label_divisor
    assert divisors[0] < divisors[1]
    for batch in PanopticTask(load("eval_dataset { crop_size: 97 enlarge: false }")).build_evaluation_batches():
        for image, truth, size in zip(batch.images, batch.label_maps, batch.raw_size.numpy()):
            pixels = image.numpy()[: size[0], : size[1]].astype(np.uint8)
            truth = encode_label(*decode_label(truth.numpy()[: size[0], : size[1]], divisors[0]), divisors[1])
            metric.update(truth, tiled(pixels).label_map)
    assert evaluator.result.as_dict()["classes"] == metric.result().as_dict()["classes"]
    assert evaluator.image_count == 3 and evaluator.result.losses == {}
    assert len(shown) == 1 and shown[0].dtype == np.uint8


def test_tiles_hold_for_checkpoints_and_can_be_switched_off(load):
    predictor, _ = PanopticTask(load(TILES)).build_predictor(None)
    tiled = predictor.in_tiles()
    assert isinstance(tiled, TiledPredictor) and (tiled.tile, tiled.overlap) == (40, 16)
    assert predictor.in_tiles(0) is predictor
    with pytest.raises(UserError, match="tile 16 with an overlap of 16: the overlap must be"):
        predictor.in_tiles(16)


def test_training_sees_parts_of_the_images(load):
    (batch,) = PanopticTask(load(TILES), for_training=True).build_batches(seed=1).take(1)
    assert batch.images.shape == (2, 33, 33, 3)
    with pytest.raises(UserError, match="tile_overlap 40: must be less than tile, which is 40"):
        load("eval_dataset { tile: 40 tile_overlap: 40 }")
