"""16-bit TIFF files from conversion to prediction: the network sees the same 8 bits everywhere."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table
from maxdl_tf.data_gen import source_files
from maxdl_tf.data_gen.checks.images import inspect_image
from maxdl_tf.errors import UserError
from maxdl_tf.export import saved_model
from maxdl_tf.files import images
from maxdl_tf.files.intensity import Percentiles, Range, to_8_bits
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.served_model import ServedModel
from maxdl_tf.inference.tiles import TiledPredictor
from maxdl_tf.protos import dataset_pb2, experiment_pb2
from maxdl_tf.tasks import checks
from tests.data_gen.conversion import complaint, read_converted, run_convert
from tests.files import png_files
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor
from tests.inference.test_served_model import FakeServer, _outputs

RULES = {"range { low: 64 high: 4095 }": Range(64, 4095), "percentiles { high: 99 }": Percentiles(0.3, 99)}


@pytest.fixture
def cells(tmp_path):
    """A folder with images of 12 bits in 16 and labels of 32 bits, TIFF files both."""
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        labels = np.zeros((30, 40), np.int32)
        labels[5:15, 5:15], labels[20:25, 10:30] = 1, 300
        values = (generator.gamma(3.0, 60.0, labels.shape) + 2000 * (labels > 0)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "images" / f"{name}.tif")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.tif")
    return tmp_path


def _convert(folder, *arguments):
    return run_convert(
        "label_pngs",
        f"--image_dir={folder / 'images'}",
        f"--label_dir={folder / 'labels'}",
        "--coding=instance",
        "--background=dish",
        f"--output_dir={folder / 'out'}",
        *arguments,
    )


@pytest.mark.parametrize("text", RULES)
def test_conversion_and_prediction_see_the_same_pixels(cells, text):
    assert _convert(cells, f"--intensity={text}") == 0
    converted = read_converted(cells / "out")
    rule = converted.info.intensity
    assert rule == RULES[text]
    values = np.asarray(Image.open(cells / "images" / "a.tif"))
    np.testing.assert_array_equal(converted.images["a"], to_8_bits(values, rule)[..., np.newaxis].repeat(3, 2))
    assert sorted(np.unique(converted.labels["a"])) == [257, 258, 512]

    info = dataclasses.replace(INFO, intensity=rule)
    predictor = Predictor.from_model(ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=info)
    path = str(cells / "images" / "a.tif")
    for found in (predictor(path), predictor(values), TiledPredictor(predictor, tile=24, overlap=8)(path)):
        np.testing.assert_array_equal(found.image, converted.images["a"])


def test_an_export_carries_the_rule(cells):
    export, rule = str(cells / "export"), Range(0, 4095)
    saved_model.export_saved_model(
        ColorNetwork(),
        postprocessor(),
        crop_size=CROP_SIZE,
        dataset_info=dataclasses.replace(INFO, intensity=rule),
        export_dir=export,
        origin={},
        images={"small": images.encode_png(np.zeros((9, 9, 3), np.uint8))},
    )
    predictor = Predictor.from_saved_model(export)
    values = np.zeros((30, 40, 3), np.uint16)
    values[:, :20, 0], values[:, 20:, 2] = 4095, 4000  # Red and blue, which the upper 8 bits show as void.
    prediction = predictor(values)
    assert sorted(np.unique(prediction.label_map)) == [1001, 3000]
    serve = tf.saved_model.load(export).signatures["serving_default"]
    served = serve(image_bytes=tf.constant([png_files.png(values)]))["panoptic_map"][0]
    np.testing.assert_array_equal(served, prediction.label_map)


def test_all_splits_have_one_rule(cells, capsys):
    assert _convert(cells, "--intensity=range { high: 4095 }") == _convert(cells, "--split=val") == 0
    np.testing.assert_array_equal(
        read_converted(cells / "out", "val").images["b"], read_converted(cells / "out").images["b"]
    )
    capsys.readouterr()
    assert _convert(cells, "--split=test", "--intensity=range { high: 1023 }") == 2
    assert "its intensity is range { low: 0 high: 4095 }, here it is range { low: 0 high: 1023 }" in complaint(capsys)


def test_an_experiment_with_a_table_of_its_own_takes_the_rule_of_its_shards(cells):
    assert _convert(cells, "--intensity=range { high: 4095 }") == 0
    named = cells / "named.textproto"
    named.write_text(class_table.to_text(INFO))
    options = dataset_pb2.DatasetOptions(file_pattern=[f"{cells}/out/train-*.tfrecord"], dataset_info=str(named))
    assert class_table.of_dataset(options) == dataclasses.replace(INFO, intensity=Range(0, 4095))
    named.write_text(class_table.to_text(dataclasses.replace(INFO, intensity=Range(0, 1023))))
    assert class_table.of_dataset(options).intensity == Range(0, 1023)
    experiment = experiment_pb2.Experiment(train_dataset=options)
    with pytest.raises(UserError, match=r"intensity range { low: 0 high: 1023 }, but .* high: 4095 }, by which the sh"):
        checks.check_run(experiment, str(cells / "model"), trains=True, evaluates=False)


def test_without_a_rule_the_converter_names_the_flag(cells, capsys):
    assert _convert(cells) == 2
    assert "such as maxdl-convert --intensity 'range { low: 0 high: 4095 }' for 12 bits, which" in complaint(capsys)
    full = np.arange(0, 60_000, 50, dtype=np.uint16).reshape(30, 40)
    Image.fromarray(full).save(cells / "images" / "a.tif")
    assert _convert(cells) == 2
    assert "a.tif: values 0 to 59950 of more than 8 bits; convert the training data with a rule" in complaint(capsys)
    assert _convert(cells, "--intensity=0-4095", "--image_dir=nowhere") == 2  # Before anything is read.
    assert "--intensity '0-4095': there is no field 0-4095; choose one of range, percentiles" in complaint(capsys)


@pytest.mark.parametrize(
    "text, message",
    [
        ("range { low: 9 high: 9 }", "intensity range { low: 9 high: 9 }: high must be above low"),
        ("", "intensity has no rule; set range"),
        ("percentiles { high: 101 }", "percentiles.high 101.0: must lie between 0 and 100"),
        ("4095", "intensity"),
    ],
)
def test_rules_that_are_none_are_refused(text, message):
    table = class_table.to_text(INFO)
    assert class_table.parse(table).intensity is None
    with pytest.raises(class_table.UserError, match=message):
        class_table.parse(f"{table} intensity {{ {text} }}", "the intensity")


def test_8_bit_tiff_files_need_no_rule(cells):
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(cells / "images" / f"{name}.tif", compression="tiff_lzw")
    assert _convert(cells) == 0
    converted = read_converted(cells / "out")
    assert converted.info.intensity is None
    np.testing.assert_array_equal(converted.images["a"], pixels)


def test_a_check_of_files_knows_tiff_and_the_rule(cells):
    content = (cells / "images" / "a.tif").read_bytes()
    assert [kind for kind, _ in inspect_image(content, source_files.FORMATS, Range(0, 4095)).faults] == []
    (fault,) = inspect_image(content, source_files.FORMATS).faults
    assert fault[0] == "image-format" and "--intensity" in fault[1]
    assert ("image-format", "a TIFF file") in inspect_image(content, intensity=Range(0, 4095)).faults  # In a record.


def test_a_png_of_16_bits_is_sent_to_a_server_with_8(cells):
    """An older export on the server would not know the rule."""
    values = np.asarray(Image.open(cells / "images" / "a.tif"))
    path, rule = str(cells / "a.png"), Range(0, 4095)
    Image.fromarray(values).save(path)
    pixels = images.read_image(path, intensity=rule)
    server = FakeServer(_outputs(np.full([30, 40], 1001), (30, 40)))
    ServedModel(server, dataclasses.replace(INFO, intensity=rule)).predict(path, pixels)
    sent = images.decode_image(server.inputs["image_bytes"][0], "sent")
    assert sent.value_range is None
    np.testing.assert_array_equal(sent.pixels, pixels)
