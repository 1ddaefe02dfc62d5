"""The steps in NumPy against those of the graph: images, random outputs, all goldens, processes without TensorFlow.

Label maps, ids, classes, areas and boxes are equal. Scores differ by rounding, as `exp` does in NumPy and TensorFlow.
For the same reason, a pixel whose probability is within `ROUNDING` of `pixel_threshold` may be void in one of the two.
The tests count such pixels and allow `MOST_UNSURE` in each test.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import transforms
from maxdl_tf.inference import numpy_pipeline
from maxdl_tf.inference.numpy_pipeline import NumpyPostprocessor, Pipeline
from maxdl_tf.inference.segmenter import ImageSegmenter
from maxdl_tf.models import mask_bands
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs
from tests.helpers import any_golden, own_golden, shared_golden
from tests.models import test_mask_pasting, test_postprocess
from tests.models.test_postprocess import COCO, outputs_of, scene

ROUNDING, MOST_UNSURE = 1e-6, 1
KINDS = ("pixel_wise", "mask_wise", "pixel_wise, split", "mask_wise, split")
TABLE = DatasetInfo(
    "random",
    tuple(SegmentClass(i, str(i), i in (3, 8, 2), (0, 0, 0), i) for i in (8, 3, 6, 5, 2)),
    label_divisor=120,
    ignore_label=9,
)


def in_numpy(postprocessor: Postprocessor, outputs: PanopticOutputs, image_size: tuple[int, int]):
    again = NumpyPostprocessor(postprocessor.dataset_info, **postprocessor.arguments)
    return again(np.asarray(outputs.mask_logits[0]), np.asarray(outputs.class_logits[0]), image_size)


def in_graph(postprocessor: Postprocessor, outputs: PanopticOutputs):
    """A function to the graph's label map and its segments without rows of zeros, traced for the shapes of outputs."""
    segmenter = ImageSegmenter(None, postprocessor, postprocessor.input_size(outputs.mask_logits))
    shapes = [tf.TensorSpec(x.shape, tf.float32) for x in (outputs.mask_logits, outputs.class_logits)]

    @tf.function(input_signature=[*shapes, tf.TensorSpec([2], tf.int32)], autograph=False)
    def graph(mask_logits, class_logits, image_size):
        return segmenter.segment_outputs(outputs_of(mask_logits, class_logits), image_size)

    def read(outputs, image_size):
        found = graph(outputs.mask_logits, outputs.class_logits, tf.constant(image_size))
        return found.panoptic.numpy(), [field.numpy()[: found.segments.count] for field in found.segments[1:]]

    return read


def assert_same_segments(segments: numpy_pipeline.Segments, graph: list[np.ndarray]) -> None:
    assert segments.count == len(graph[0])
    for name, got, wanted in zip(segments._fields[1:], segments[1:], graph):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), name
        np.testing.assert_allclose(got, wanted, rtol=0, atol=ROUNDING if name == "scores" else 0, err_msg=name)


def random_shape(generator: np.random.Generator) -> tuple[int, int, int]:
    """(height, width, slots) of mask logits."""
    return tuple(generator.integers((1, 1, 2), (18, 18, 25)).tolist())


def random_postprocessor(
    generator: np.random.Generator, kind: str, shape: tuple[int, int, int], number: int
) -> Postprocessor:
    stride = (4, 2)[number % 2]
    area = stride**2 * np.prod(shape[:2]) / shape[2]  # Pixels of a slot, on average.
    options = {}
    if "mask_wise" in kind:
        exponents = generator.choice([0.0, 0.5, 1.0, 2.0], 2).tolist()
        options = {"overlap_threshold": float(generator.choice([0.0, 0.4, 0.8]))}
        options |= dict(zip(("class_exponent", "mask_exponent"), exponents))
    if "split" in kind:
        options |= {"split_min_area": int(generator.choice([0, 9, 25]))}
        options |= {"split_connectivity": 1 + number % 2}
    return Postprocessor(
        TABLE,
        class_threshold=float(generator.choice([0.0, 0.4, 0.7])),
        stuff_class_threshold=[None, 0.5][generator.integers(2)],
        pixel_threshold=float(generator.choice([0.4, 0.5, 0.7])),
        thing_area_limit=int(area * generator.uniform(0, 0.4)),
        stuff_area_limit=int(area * generator.uniform(0, 1)),
        output_stride=stride,
        enlarge=bool(generator.integers(2)),
        **options,
    )


def random_outputs(generator: np.random.Generator, shape: tuple[int, int, int]) -> PanopticOutputs:
    """Blobs of 3 x 3 logits with noise, or rounded, so that many slots have equal logits."""
    height, width, num_slots = shape
    coarse = generator.normal(0, 5, [-(-height // 3), -(-width // 3), num_slots])
    mask_logits = np.kron(coarse, np.ones((3, 3, 1)))[:height, :width]
    noise = generator.choice([0.0, 0.3, 1.0])
    mask_logits = mask_logits + generator.normal(0, noise, shape) if noise else np.round(mask_logits)
    class_logits = generator.normal(0, 4, [num_slots, len(TABLE.classes) + 1])
    return outputs_of(*(tf.constant(x[np.newaxis], tf.float32) for x in (mask_logits, class_logits)))


def compare_random_outputs(kind: str, seed: int, num_postprocessors: int, num_outputs: int) -> None:
    generator = np.random.default_rng(seed)
    unsure, segments = [], 0
    for number in range(num_postprocessors):
        shape = random_shape(generator)
        postprocessor, graph = random_postprocessor(generator, kind, shape, number), None
        for _ in range(num_outputs):
            outputs, image_size = random_outputs(generator, shape), generator.integers(1, 100, 2).tolist()
            graph = graph or in_graph(postprocessor, outputs)
            panoptic, table = graph(outputs, image_size)
            label_map, found = in_numpy(postprocessor, outputs, image_size)
            assert label_map.dtype == panoptic.dtype == np.int32
            if np.array_equal(label_map, panoptic):
                assert_same_segments(found, table)
            else:
                unsure.append(pixels_near_the_threshold(postprocessor, outputs))
                assert unsure[-1], f"{np.sum(label_map != panoptic)} pixels differ and none is within rounding"
            segments += found.count
    assert sum(unsure) <= MOST_UNSURE, f"{unsure} pixels are within rounding of pixel_threshold"
    assert segments > num_postprocessors * num_outputs


@pytest.mark.parametrize("kind", KINDS)
def test_random_outputs(kind):
    """50 outputs of each kind, with images of any size, both strides and equal logits."""
    compare_random_outputs(kind, KINDS.index(kind), num_postprocessors=2, num_outputs=25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_random_outputs(kind):
    """500 outputs of each kind, with 25 sizes of logits, numbers of slots and sets of thresholds."""
    compare_random_outputs(kind, 10 + KINDS.index(kind), num_postprocessors=25, num_outputs=20)


def pixels_near_the_threshold(postprocessor: Postprocessor, outputs: PanopticOutputs) -> int:
    """Number of pixels of the network's input with a probability that rounding may carry over `pixel_threshold`."""
    probability = tf.nn.softmax(outputs.class_logits[0]).numpy()[:, :-1].max(axis=-1)
    logits = mask_bands.upsampled(outputs.mask_logits[0], postprocessor.output_stride)
    if not postprocessor.is_mask_wise:
        logits = logits.numpy()[..., probability >= postprocessor.thresholds["class_threshold"]]
    mask = tf.nn.softmax(tf.cast(logits, tf.float64)).numpy()
    return int(np.sum(np.abs(mask - postprocessor.thresholds["pixel_threshold"]) < ROUNDING))


@pytest.mark.parametrize("name", test_postprocess.GOLDENS)
def test_pixel_wise_goldens(name):
    postprocessor, logits = test_postprocess.golden_call(golden := any_golden(name))
    assert_goldens(postprocessor, outputs_of(*logits), golden["out/panoptic_pred"])


@pytest.mark.parametrize("data", test_mask_pasting.CLASS_IDS)
def test_mask_wise_goldens(data):
    postprocessor, logits, panoptic = test_mask_pasting.golden_call(shared_golden(f"k_post_{data}"))
    assert_goldens(postprocessor, outputs_of(*logits), panoptic)


@pytest.mark.parametrize("encoder", ["r50", "convnext"])
def test_goldens_of_whole_mask_wise_models(encoder):
    golden = shared_golden(f"k_tiny_{encoder}_eval")
    limits = {name: golden.info[name] for name in ("thing_area_limit", "stuff_area_limit")}
    postprocessor = Postprocessor(COCO, stuff_class_threshold=0.5, overlap_threshold=0.8, **limits)
    outputs = outputs_of(golden["out/pixel_space_mask_logits"], golden["out/transformer_class_logits"])
    assert_goldens(postprocessor, outputs, golden["out/panoptic_pred"])


def assert_goldens(postprocessor: Postprocessor, outputs: PanopticOutputs, panoptic: np.ndarray) -> None:
    """The image has the size of the network's input, so its map is the golden; then an image of another size."""
    size = postprocessor.input_size(outputs.mask_logits)
    segmenter = ImageSegmenter(None, postprocessor, size)
    for n, wanted in enumerate(panoptic):
        image = outputs_of(*(tf.constant(x[n : n + 1]) for x in (outputs.mask_logits, outputs.class_logits)))
        np.testing.assert_array_equal(in_numpy(postprocessor, image, size)[0], wanted)
        label_map, segments = in_numpy(postprocessor, image, (50, 77))
        found = segmenter.segment_outputs(image, tf.constant([50, 77]))
        np.testing.assert_array_equal(label_map, found.panoptic)
        assert_same_segments(segments, [field.numpy()[: found.segments.count] for field in found.segments[1:]])


@pytest.mark.parametrize("stride", [2, 4])
def test_interpolated_logits_have_the_same_bits(stride):
    generator = np.random.default_rng(0)
    for _ in range(20):
        shape = random_shape(generator)
        logits = (generator.normal(size=shape) * generator.choice([1, 10, 100])).astype(np.float32)
        (resized,) = numpy_pipeline._by_bands(lambda band: (band,), logits, stride)
        np.testing.assert_array_equal(resized, mask_bands.upsampled(tf.constant(logits), stride))
    assert resized.dtype == np.float32


def test_sizes_and_places_are_those_of_the_graph():
    generator = np.random.default_rng(0)
    for _ in range(100):
        image, crop = generator.integers(1, [3000, 700], [2, 2]).T.tolist()
        for enlarge in (False, True):
            wanted = transforms.resized_size(tf.constant(image), crop, enlarge).numpy().tolist()
            assert list(numpy_pipeline.resized_size(image, crop, enlarge)) == wanted, (image, crop, enlarge)
        rows = transforms.resize_labels(tf.range(crop[0])[:, tf.newaxis], [image[0], 1])[:, 0]
        np.testing.assert_array_equal(numpy_pipeline._nearest(crop[0], image[0]), rows)


def test_kept_slots_win_over_others_with_equal_logits():
    """Then the first one wins. Slot 0 is dropped, and each of the four has the same logit somewhere."""
    outputs = scene([[0, 1, 2, 3]], [1, 1, 0, 2], confidence=[0.3, 0.9, 0.9, 0.9])
    logits = outputs.mask_logits.numpy()
    logits[0, 0, 0, 1] = logits[0, 0, 2, 3] = 200
    outputs = outputs._replace(mask_logits=tf.constant(logits))
    postprocessor = Postprocessor(test_postprocess.SMALL, thing_area_limit=0, stuff_area_limit=0)
    label_map, _ = in_numpy(postprocessor, outputs, (1, 13))
    assert label_map[0, ::4].tolist() == [8002, 8002, 3003, 5000]


def test_padding_counts_in_areas():
    """Of the thing's 25 pixels, the image shows 3."""
    outputs = scene([[0, 0], [0, 0]], [test_postprocess.THING_8, test_postprocess.STUFF_5])
    for kind in ({}, {"overlap_threshold": 0.0}):
        for limit, wanted in ((25, {8001}), (26, {test_postprocess.VOID})):
            postprocessor = Postprocessor(
                test_postprocess.SMALL, thing_area_limit=limit, stuff_area_limit=0, enlarge=False, **kind
            )
            label_map, segments = in_numpy(postprocessor, outputs, (1, 3))
            assert set(label_map.ravel().tolist()) == wanted
            assert segments.areas.tolist() == [3] * (limit == 25)


def test_logits_that_do_not_fit_are_refused():
    postprocess = NumpyPostprocessor(TABLE, thing_area_limit=0, stuff_area_limit=0)
    for mask, classes in (((3, 3, 4), (4, 5)), ((3, 3, 4), (5, 6)), ((1, 3, 3, 4), (4, 6))):
        with pytest.raises(ValueError, match="of one image; is this the model of another data set"):
            postprocess(np.zeros(mask), np.zeros(classes), (9, 9))


def test_the_networks_input_has_the_same_bits():
    generator = np.random.default_rng(0)
    sizes = [*generator.integers(1, 300, [40, 2]).tolist(), [1, 1], [1, 300], [300, 1], [97, 129], [96, 128], [2, 2]]
    for size in sizes:
        image = generator.integers(0, 256, [*size, 3], np.uint8)
        for crop_size in ((97, 129), tuple(generator.integers(1, 100, 2).tolist())):
            for enlarge in (False, True):
                postprocess = NumpyPostprocessor(TABLE, thing_area_limit=0, stuff_area_limit=0, enlarge=enlarge)
                found = Pipeline(crop_size, postprocess, {}).network_input(image)
                wanted, _ = transforms.evaluation_transform(tf.constant(image), crop_size, enlarge)
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, wanted[tf.newaxis], f"{size} {crop_size} {enlarge}")
    assert numpy_pipeline.PADDING == transforms.PADDING


_ALONE = """
import json, sys
sys.modules["tensorflow"] = None  # Importing it fails.
import numpy as np
{IMPORTS}
logits = np.load("logits.npz")
label_map, segments = postprocess(logits["mask"], logits["classes"], (97, 161))
np.savez("found.npz", label_map=label_map, **segments._asdict())
"""
_IN_PACKAGE = """
from maxdl_tf import class_table
from maxdl_tf.inference.numpy_pipeline import NumpyPostprocessor
arguments = json.load(open("export_info.json"))["postprocess"]
postprocess = NumpyPostprocessor(class_table.load("dataset_info.textproto"), **arguments)
"""
_AS_A_FILE = """
sys.modules["maxdl_tf"] = None
from numpy_pipeline import Pipeline
pipeline = Pipeline.of_folder(".")
postprocess = pipeline.postprocess
assert pipeline.network_input(np.zeros([5, 7, 3], np.uint8)).shape == (1, 97, 161, 3)
"""


@pytest.mark.parametrize("imports", [_IN_PACKAGE, _AS_A_FILE], ids=["in_package", "as_a_file"])
def test_it_works_without_tensorflow(tmp_path, imports):
    """In the package with TensorFlow out of reach, and as a copied file without the package."""
    golden = own_golden("e_post_one_image")
    postprocessor, (mask_logits, class_logits) = test_postprocess.golden_call(golden)
    np.savez(tmp_path / "logits.npz", mask=mask_logits[0], classes=class_logits[0])
    info = {"crop_size": [97, 161], "postprocess": postprocessor.arguments}
    (tmp_path / "export_info.json").write_text(json.dumps(info))
    (tmp_path / class_table.FILE_NAME).write_text(class_table.to_text(COCO))
    table = {name: getattr(COCO, name) for name in numpy_pipeline._READ}
    (tmp_path / "dataset_info.json").write_text(json.dumps(table))
    shutil.copy(numpy_pipeline.__file__, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(class_table.__file__).parents[1])}
    program = _ALONE.format(IMPORTS=imports)
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["label_map"], golden["out/panoptic_pred"][0])
        assert found["count"] == len(found["ids"]) > 2
