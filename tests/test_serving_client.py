"""maxdl-serving-client against the stand-ins: it writes what maxdl-predict writes, and complaints are one line."""

import importlib.util
import json
import shutil
import socket
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import predict, serving_client
from maxdl_tf.errors import UserError
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.served_model import GrpcServer, RequestError, ServedModel, outputs_of
from tests.export.color_export import save_color_model
from tests.helpers import in_process
from tests.inference.color_network import BLUE, INFO, RED, striped_image
from tests.serving_stand_ins import GrpcStandIn, RestStandIn, Servable

HAS_EXTRA = importlib.util.find_spec("tensorflow_serving") is not None
NEEDS_EXTRA = pytest.mark.skipif(not HAS_EXTRA, reason="needs tensorflow-serving-api, the extra [serving]")
BOTH = pytest.mark.parametrize("protocol", [pytest.param("grpc", marks=NEEDS_EXTRA), "rest"])
STAND_INS = {"grpc": GrpcStandIn, "rest": RestStandIn}
EXIF_ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def servable(color_export):
    return Servable(color_export, "colors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """One photo of each kind that the client sends differently; lossless, so that both decoders see the same."""
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(striped_image(97, 129)[0]).save(folder / "000000000139.png")
    Image.fromarray(striped_image(40, 300, (RED, BLUE))[0]).save(folder / "000000000285.gif")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(striped_image(70, 50)[0]).save(folder / "33.png", exif=exif)
    Image.fromarray(np.full((1, 1), 127, np.uint8)).save(folder / "7.png")
    return folder


def _run(module, *arguments) -> int:
    return in_process(module, *arguments, program="maxdl-command")


def _ask(protocol, address, color_export, photos, output, *more):
    arguments = ("--server", address, "--model_name=colors", "--input", photos, "--output", output)
    table = f"{color_export}/assets/dataset_info.textproto"
    rest = ("--rest",) * (protocol == "rest")
    return _run(serving_client, *arguments, "--dataset_info", table, *rest, *more)


def _pixels(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def predicted(color_export, photos, tmp_path_factory):
    """What maxdl-predict writes."""
    output = tmp_path_factory.mktemp("predicted") / "out"
    arguments = ("--model", color_export, "--input", photos, "--output", output)
    assert _run(predict, *arguments) == 0
    return output


@BOTH
@pytest.mark.parametrize("signature", [None, "serving_default", "image_tensor", "tf_example"])
def test_the_files_are_those_of_maxdl_predict(
    protocol, signature, servable, color_export, photos, predicted, tmp_path, capsys
):
    with STAND_INS[protocol](servable) as address:
        flags = (f"--signature={signature}",) * (signature is not None)
        assert _ask(protocol, address, color_export, photos, tmp_path / "out", *flags) == 0
    assert "predicted 4 of 4 images" in capsys.readouterr().out
    got, wanted = (json.loads((folder / "panoptic.json").read_text()) for folder in (tmp_path / "out", predicted))
    assert len(wanted["annotations"]) == 4
    assert sum(len(annotation["segments_info"]) for annotation in wanted["annotations"]) == 8
    assert got == wanted
    for folder in ("panoptic", "overlays"):
        got, wanted = _pixels(tmp_path / "out" / folder), _pixels(predicted / folder)
        assert set(got) == set(wanted)
        for name, pixels in wanted.items():
            np.testing.assert_array_equal(got[name], pixels, err_msg=name)


@NEEDS_EXTRA
def test_a_map_beyond_grpcs_limit_of_4_megabytes_comes_through(servable, color_export, tmp_path):
    image, _ = striped_image(1600, 1800)
    Image.fromarray(image).save(tmp_path / "large.png")
    with GrpcStandIn(servable) as address:
        flags = ("--nooverlays", "--signature=serving_default")
        assert _ask("grpc", address, color_export, tmp_path / "large.png", tmp_path / "out", *flags) == 0
    png = _pixels(tmp_path / "out" / "panoptic")["large.png"]
    label_map = Predictor.from_saved_model(str(color_export))(image).label_map
    np.testing.assert_array_equal(png.astype(np.int32) @ [1, 256, 65536], label_map)


@BOTH
def test_refused_and_damaged_images_are_told_and_the_others_are_predicted(
    protocol, color_export, photos, tmp_path, capsys
):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "bad.jpg").write_bytes(b"no image")
    small = Servable(save_color_model(tmp_path / "small" / "3", max_pixels=12_100), "colors")
    with STAND_INS[protocol](small) as address:
        assert _ask(protocol, address, color_export, folder, tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert f"failed: {folder}/bad.jpg: cannot be read as an image" in captured.err
    assert (
        f"failed: {folder}/000000000139.png: image 0 of the batch has 97 x 129 pixels; send at most 12100 or export "
        "with more --max_pixels\n"
    ) in captured.err
    assert "predicted 3 of 5 images" in captured.out and "2 failed" in captured.out
    names = {"33.png", "7.png", "000000000285.png"}
    assert {path.name for path in (tmp_path / "out" / "panoptic").iterdir()} == names
    annotations = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    assert {annotation["file_name"] for annotation in annotations} == names


@BOTH
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model_name=shapes"], "does not serve a model shapes (Servable not found for request: Latest(shapes))"),
        (["--signature=tf_example"], "the served model has no signature tf_example; it has image_tensor"),
        (["--signature=image_tensor"], "signature image_tensor of the served model has no output "),
    ],
)
def test_a_wrong_model_ends_it_before_anything_is_written(
    protocol, arguments, message, color_export, photos, tmp_path, capsys
):
    model = tf.Module()
    model.call = tf.function(lambda image: {"x": image}, [tf.TensorSpec([None], tf.uint8, "image")])
    tf.saved_model.save(model, str(tmp_path / "1"), signatures={"image_tensor": model.call})
    with STAND_INS[protocol](Servable(tmp_path / "1", "colors")) as address:
        assert _ask(protocol, address, color_export, photos, tmp_path / "out", *arguments) == 2
    _check_complaint(capsys, message)
    assert not (tmp_path / "out").exists()


@BOTH
def test_an_absent_server_ends_it(protocol, color_export, photos, tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert _ask(protocol, address, color_export, photos, tmp_path / "out") == 2
    _check_complaint(capsys, f"no server answers at {address} (")
    assert not (tmp_path / "out").exists()


@BOTH
def test_a_server_that_does_not_answer_is_not_waited_for(protocol, color_export, photos, tmp_path, capsys):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert _ask(protocol, address, color_export, photos, tmp_path / "out", "--timeout_s=0.3") == 2
    _check_complaint(capsys, f"{address}")


@NEEDS_EXTRA
@pytest.mark.parametrize(
    "protocol, other, message",
    [("grpc", "rest", "no server answers at "), ("rest", "grpc", " does not speak TensorFlow Serving's REST: ")],
)
def test_the_port_of_the_other_protocol_ends_it(
    protocol, other, message, servable, color_export, photos, tmp_path, capsys
):
    with STAND_INS[other](servable) as address:
        assert _ask(protocol, address, color_export, photos, tmp_path / "out") == 2
    _check_complaint(capsys, message)


@NEEDS_EXTRA
@pytest.mark.parametrize(
    "dims, content, error, message",
    [
        (
            (1, 10**6, 10**6),
            b"",
            RequestError,
            "panoptic_map of nowhere:1 has 1,000,000,000,000 values, too many for the",
        ),
        ((1, 3, 4), b"123", UserError, "nowhere:1 does not answer like TensorFlow Serving: "),
        (
            (2, 3, 4),
            b"",
            UserError,
            r"output panoptic_map of the served model is int32 \[2, 3, 4\]; wanted finite",
        ),
    ],
)
def test_strange_tensors_over_grpc_are_one_line(dims, content, error, message, tmp_path, monkeypatch):
    """A tensor with one value stands for a tensor of any shape with that value everywhere."""
    from tensorflow_serving.apis import predict_pb2

    response = predict_pb2.PredictResponse()
    names = outputs_of("serving_default")
    for name in names:
        response.outputs[name].CopyFrom(tf.make_tensor_proto([1], tf.float32 if "scores" in name else tf.int32))
    strange = response.outputs["panoptic_map"]
    strange.Clear()
    strange.dtype, strange.tensor_content = tf.int32.as_datatype_enum, content
    strange.tensor_shape.CopyFrom(tf.TensorShape(dims).as_proto())
    if not content:
        strange.int_val.append(7)
    server = GrpcServer("nowhere:1", "shapes")
    monkeypatch.setattr(server, "_call", lambda method, request: response)
    monkeypatch.setattr(server, "signatures", lambda: {"serving_default": names})
    Image.fromarray(np.zeros([3, 4, 3], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(error, match=message):
        ServedModel(server, INFO).predict(str(tmp_path / "a.png"), np.zeros([3, 4, 3], np.uint8))


@BOTH
@pytest.mark.parametrize(
    "label_divisor, message",
    [
        (1000, "the served model has a class 3, which 'one' lacks; give the model's table"),
        (256, "a segment 1001 of class 1, which does not fit label_divisor 256 of 'one'; give the model's table"),
    ],
)
def test_another_models_class_table_ends_it(protocol, label_divisor, message, servable, photos, tmp_path, capsys):
    (tmp_path / "assets").mkdir()
    table = f'name: "one" segment_class {{ id: 1 name: "ball" }} label_divisor: {label_divisor}'
    (tmp_path / "assets" / "dataset_info.textproto").write_text(table)
    with STAND_INS[protocol](servable) as address:
        assert _ask(protocol, address, tmp_path, photos, tmp_path / "out") == 2
    _check_complaint(capsys, message)
    assert not (tmp_path / "out" / "panoptic.json").exists()


def test_without_the_extra_it_says_what_to_install(color_export, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.delitem(sys.modules, "tensorflow_serving.apis", raising=False)
    assert _ask("grpc", "127.0.0.1:1", color_export, photos, tmp_path / "out") == 2
    _check_complaint(capsys, "install it with pip install 'maxdl_tf[serving]', or use REST")


def _check_complaint(capsys, message):
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("predicting ")]
    assert len(lines) == 1 and lines[0].startswith("maxdl-command: ") and message in lines[0]
