"""Strange, slow and endless answers to REST requests: each is an error of one line, in time and in little memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files.images import read_image
from maxdl_tf.inference import served_model
from maxdl_tf.inference.rest_server import RestServer
from maxdl_tf.inference.served_model import RequestError, ServedModel, outputs_of
from tests.inference.color_network import INFO, striped_image

HEIGHT, WIDTH = 3, 4
RIGHT = {
    "panoptic_map": [[[1001] * WIDTH] * HEIGHT],
    "image_size": [[HEIGHT, WIDTH]],
    "num_segments": [1],
    "segment_ids": [[1001, 0]],
    "segment_class_ids": [[1, 0]],
    "segment_scores": [[0.75, 0.0]],
    "segment_areas": [[12, 0]],
    "segment_boxes": [[[0, 0, 4, 3], [0, 0, 0, 0]]],
}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@contextlib.contextmanager
def answering(parts):
    """The address of a server that sends the same parts, bytes, to each client, whatever it asks."""

    def serve(client):
        with client, contextlib.suppress(OSError):
            client.recv(2**20)
            for part in parts():
                client.sendall(part)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def http(body: bytes | str, status: str = "200 OK") -> list[bytes]:
    body = body.encode() if isinstance(body, str) else body
    return [f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body]


def outputs(**changed) -> list[bytes]:
    return http(json.dumps({"outputs": {name: value for name, value in {**RIGHT, **changed}.items() if value}}))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(striped_image(HEIGHT, WIDTH)[0]).save(path)
    return str(path)


class _Signatures(RestServer):
    """A server whose metadata are right."""

    def signatures(self):
        return {"serving_default": outputs_of("serving_default")}


def predict(address, photo, timeout=20.0):
    model = ServedModel(_Signatures(address, "shapes", timeout), INFO)
    return model.predict(photo, read_image(photo))


def test_the_right_answer(photo):
    with answering(outputs) as address:
        prediction = predict(address, photo)
    assert (prediction.label_map == 1001).all() and [segment.id for segment in prediction.segments] == [1001]


STRANGE_JSON = [
    "",
    "{",
    "5",
    "null",
    "[]",
    '"x"',
    "{}",
    "[" * 100_000,
    '{"a":' * 50_000,
    "9" * 5000,
    "NaN",
    "\0",
    b"\xff",
]
STRANGE_FIELDS = [5, None, [], "x", [1], {"signature_def": 5}, {"serving_default": []}]
STRANGE_HTTP = [
    [b""],
    [b"\0\0\0\4"],
    [b"SSH-2.0-OpenSSH\r\n"],
    [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"],
    [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"],
    [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}"],
    [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    [b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"],
    [b"HTTP/1.1 200 OK\r\n" + b"A" * 100_000],
    [b"HTTP/1.1 xyz\r\n\r\n"],
    http("", "301 Moved Permanently\r\nLocation: file:///etc/passwd"),
    http("", "302 Found\r\nLocation: http://127.0.0.1:1/"),
    http("", "204 No Content"),
    http("", "404 Not Found"),
    http('{"error": 5}', "404 Not Found"),
    http("\x1b[2Jboo\n" * 1000, "500 Internal Server Error"),
    http("[" * 60_000, "500 Internal Server Error"),
    http('{"error": null}', "400 Bad Request"),
    [b"HTTP/1.1 503 Busy\r\nContent-Length: 50\r\n\r\n{}"],
]


@pytest.mark.parametrize(
    "answer",
    [
        *map(http, STRANGE_JSON),
        *(http(json.dumps({name: field})) for name in ("metadata", "outputs") for field in STRANGE_FIELDS),
        *(http(json.dumps({"metadata": {"signature_def": field}})) for field in STRANGE_FIELDS),
        *(http(json.dumps({"metadata": {"signature_def": {"signature_def": field}}})) for field in STRANGE_FIELDS),
        *STRANGE_HTTP,
    ],
)
def test_strange_answers_are_one_line(answer, photo):
    with answering(lambda: answer) as address:
        for ask in (lambda: ServedModel(RestServer(address, "shapes", 20.0), INFO), lambda: predict(address, photo)):
            with pytest.raises((UserError, RequestError)) as caught:
                ask()
            message = str(caught.value)
            assert 10 < len(message) < 600 and message.isprintable(), message


@pytest.mark.parametrize("name", RIGHT)
def test_strange_outputs_are_one_line(name, photo):
    right = RIGHT[name]
    strange = [None, 5, "x", {"b64": "AAAA"}, [], [[]], [None], right[0], [right], right * 2, [[1], [2, 3]], [[["x"]]]]
    strange += [[value] for value in ([10**30], [1e300], [float("nan")], [True], [-5, 5], [[5]], [[[5]]])]
    for value in strange:
        with answering(lambda: outputs(**{name: value})) as address:  # noqa: B023
            with pytest.raises((UserError, RequestError)) as caught:
                predict(address, photo)
            assert name in str(caught.value) or "served model" in str(caught.value) or name == "image_size"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"panoptic_map": [[[1001, 7, 0, 0]] * HEIGHT]}, "returns pixels of 7, which is not a segment"),
        ({"panoptic_map": [[[1001] * WIDTH]]}, "returns a map of 1 x 4 pixels"),
        ({"num_segments": [3]}, "returns 3 segments"),
        ({"num_segments": [-1]}, "returns -1 segments"),
        ({"segment_class_ids": [[2, 0]]}, "has a class 2"),
        ({"image_size": [[4, 3]]}, "the server saw 4 x 3 pixels, but the file has 3 x 4"),
    ],
)
def test_answers_that_contradict_themselves(changed, message, photo):
    with answering(lambda: outputs(**changed)) as address, pytest.raises((UserError, RequestError), match=message):
        predict(address, photo)


def drip(start: bytes):
    yield start
    for _ in range(100):
        time.sleep(0.1)
        yield b"1"


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n[", b"HTTP/1.1 500 No\r\n\r\n"]
)
def test_the_timeout_is_for_the_whole_answer(start, photo):
    with answering(lambda: drip(start)) as address:
        began = time.monotonic()
        with pytest.raises(RequestError, match=rf"no answer from {address} within 0.5 s"):
            predict(address, photo, timeout=0.5)
        assert time.monotonic() - began < 3


def test_the_size_of_an_answer_is_limited(photo, monkeypatch):
    monkeypatch.setattr(served_model, "_LEAST_LIMIT", 100_000)
    sent = itertools.count()

    def endless():
        yield b"HTTP/1.1 200 OK\r\n\r\n["
        while next(sent) < 10_000:
            yield b"[]," * 10_000

    with answering(endless) as address, pytest.raises(RequestError, match="is longer than 100,768 bytes; use gRPC"):
        predict(address, photo)
    assert next(sent) < 1000


def test_a_file_is_not_a_server(tmp_path):
    (tmp_path / "v1" / "models" / "shapes").mkdir(parents=True)
    (tmp_path / "v1" / "models" / "shapes" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="unknown url type: file"):
        RestServer(f"file://{tmp_path}", "shapes").signatures()


def test_float_scores_and_integers_of_rest_are_arrays_of_the_documented_types(photo):
    with answering(lambda: outputs(segment_scores=[[1, 0]])) as address:
        prediction = predict(address, photo)
    assert prediction.label_map.dtype == np.int32 and prediction.segments[0].score == 1.0
