"""docs/examples/segment_image.js in Node, against the stand-in. Node has no canvas: this one shows pixels from here."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import class_table
from tests.helpers import REPOSITORY
from tests.inference.color_network import INFO, striped_image
from tests.serving_stand_ins import RestStandIn, Servable

SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { segmentImage } from "./segment_image.mjs";

const [url, width, height] = process.argv.slice(2);
globalThis.createImageBitmap = async (blob) => {
  writeFileSync("received.png", new Uint8Array(await blob.arrayBuffer()));
  return { width: Number(width), height: Number(height) };
};
globalThis.OffscreenCanvas = class {
  getContext() {
    return { drawImage() {}, getImageData: () => ({ data: new Uint8ClampedArray(readFileSync("pixels")) }) };
  }
};
const table = JSON.parse(readFileSync("dataset_info.json"));
const { ids, ...found } = await segmentImage(new Blob([readFileSync("photo.png")]), url, table);
console.log(JSON.stringify({ ...found, ids: Array.from(ids) }));
"""


@pytest.fixture(scope="module")
def url(color_export):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    with RestStandIn(Servable(color_export, "colors")) as address:
        yield f"http://{address}/v1/models/colors"


@pytest.fixture
def run(tmp_path, url):
    shutil.copy(REPOSITORY / "docs" / "examples" / "segment_image.js", tmp_path / "segment_image.mjs")
    (tmp_path / "script.mjs").write_text(SCRIPT)
    (tmp_path / "dataset_info.json").write_text(class_table.to_json(INFO))

    def run(photo, size):
        (tmp_path / "photo.png").write_bytes(photo)
        command = ["node", "script.mjs", url, *map(str, size)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def test_it_sees_what_python_sees(run, tmp_path, color_export):
    photo = tf.io.encode_png(striped_image(40, 60)[0]).numpy()
    signatures = tf.saved_model.load(str(color_export)).signatures
    wanted, as_png = (signatures[name](image_bytes=[photo]) for name in ("serving_default", "panoptic_png"))
    png = as_png["panoptic_png_bytes"][0].numpy()
    colors = tf.io.decode_png(png).numpy()
    (tmp_path / "pixels").write_bytes(np.dstack([colors, np.full([40, 60, 1], 255, np.uint8)]).tobytes())
    done = run(photo, (60, 40))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "received.png").read_bytes() == png
    found = json.loads(done.stdout)
    assert (found["width"], found["height"]) == (60, 40)
    np.testing.assert_array_equal(found["ids"], np.ravel(wanted["panoptic_map"]))
    assert [(segment["id"], segment["name"], segment["isThing"]) for segment in found["segments"]] == [
        (1001, "ball", True),
        (1002, "ball", True),
        (3000, "sea", False),
    ]
    for row, segment in enumerate(found["segments"]):
        assert segment["color"] == list(INFO.by_id[segment["id"] // INFO.label_divisor].color)
        assert segment["score"] == pytest.approx(float(wanted["segment_scores"][0, row]))
        assert segment["area"] == int(wanted["segment_areas"][0, row])
        assert segment["box"] == wanted["segment_boxes"][0, row].numpy().tolist()


def test_the_servers_message_is_the_error(run):
    done = run(b"no image", (1, 1))
    assert done.returncode == 1 and "image 0 of the batch is not a JPEG or PNG" in done.stderr
