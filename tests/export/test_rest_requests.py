"""The JSON of docs/serving.md, as curl sends it, against the stand-in."""

import base64
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from tests.export.color_export import save_color_model
from tests.inference.color_network import striped_image
from tests.serving_stand_ins import RestStandIn, Servable

SIZES = [(97, 129), (40, 60)]
REQUEST = {"serving_default": {}, "panoptic_png": {"signature_name": "panoptic_png"}}


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    return save_color_model(tmp_path_factory.mktemp("exports") / "colors" / "7")


@pytest.fixture(scope="module")
def url(export_dir):
    with RestStandIn(Servable(export_dir, "colors")) as address:
        yield f"http://{address}/v1/models/colors"


@pytest.fixture(scope="module")
def encoded():
    return [tf.io.encode_png(striped_image(*size)[0]).numpy() for size in SIZES]


@pytest.fixture(scope="module")
def wanted(export_dir, encoded):
    """The outputs of each signature that takes files."""
    loaded = tf.saved_model.load(str(export_dir))
    outputs = {name: loaded.signatures[name](image_bytes=tf.constant(encoded)) for name in REQUEST}
    return {name: {key: value.numpy() for key, value in of_one.items()} for name, of_one in outputs.items()}


def _post(url, content):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, json.dumps(content).encode())) as response:
        return json.loads(response.read())


def _b64(content):
    return {"b64": base64.b64encode(content).decode()}


def _check(outputs, wanted):
    assert set(outputs) == set(wanted)
    for name, value in wanted.items():
        got = outputs[name]
        if name == "panoptic_png_bytes":
            got = np.array([base64.b64decode(png["b64"]) for png in got], object)
        (np.testing.assert_allclose if value.dtype == np.float32 else np.testing.assert_array_equal)(got, value)


@pytest.mark.parametrize("signature", REQUEST)
@pytest.mark.parametrize("named", [False, True])
def test_rows(url, encoded, wanted, signature, named):
    rows = [{"image_bytes": _b64(content)} if named else _b64(content) for content in encoded]
    predictions = _post(f"{url}:predict", {**REQUEST[signature], "instances": rows})["predictions"]
    _check({name: [row[name] for row in predictions] for name in predictions[0]}, wanted[signature])


@pytest.mark.parametrize("signature", REQUEST)
@pytest.mark.parametrize("version", ["", "/versions/7"])
def test_columns(url, encoded, wanted, signature, version):
    columns = {"image_bytes": [_b64(content) for content in encoded]}
    _check(_post(f"{url}{version}:predict", {**REQUEST[signature], "inputs": columns})["outputs"], wanted[signature])


def test_pixels(url, wanted):
    image, _ = striped_image(*SIZES[0])
    request = {"signature_name": "image_tensor", "instances": [image.tolist()]}
    (prediction,) = _post(f"{url}:predict", request)["predictions"]
    np.testing.assert_array_equal(prediction["panoptic_map"], wanted["serving_default"]["panoptic_map"][0])


@pytest.mark.parametrize(
    "path, status, message",
    [(":predict", 400, "is not a JPEG or PNG"), ("/versions/8:predict", 404, "Servable not found")],
)
def test_refusals(url, path, status, message):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        _post(url + path, {"instances": [_b64(b"no image")]})
    assert refusal.value.code == status and message in json.loads(refusal.value.read())["error"]
