"""A server over REST, which needs no further package: HTTP with JSON.

JSON is several times the size of its numbers, and its objects in Python are several times larger again. So the size of
an answer is limited, and so is the time for the whole answer: a socket's timeout is for each read, which a server that
sends byte by byte never reaches.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.inference.served_model import (
    RequestError,
    answer_limit,
    model_is_missing,
    one_line,
    server_is_missing,
)

_ERROR_BYTES = 2**16
_CHUNK = 2**18
_TIMEOUTS = (TimeoutError, socket.timeout, concurrent.futures.TimeoutError)  # Python 3.9 has three.


class RestServer:
    """A server over REST.

    Args:
      address: host:port, or the URL before `/v1/models`; TensorFlow Serving's default port for REST is 8501.
      model_name: Name of the model on the server.
      timeout: Seconds to wait for a whole answer.
    """

    def __init__(self, address: str, model_name: str, timeout: float = 60.0):
        self._address, self._model_name, self._timeout = address, model_name, timeout
        self._url = f"{address if storage.is_remote(address) else f'http://{address}'}/v1/models/{model_name}"
        # urllib's default handlers would also open files, and follow a server to other addresses.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)

    def signatures(self) -> dict[str, list[str]]:
        metadata = self._field(self._call("/metadata", limit=answer_limit(0)), "metadata")
        signatures = self._field(self._field(metadata, "signature_def"), "signature_def")
        fields = {name: self._field(signatures, name) for name in signatures}
        return {
            name: list(self._field(field, "outputs") if "outputs" in field else []) for name, field in fields.items()
        }

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray], pixels: int) -> dict[str, np.ndarray]:
        columns = {name: [_as_json(value) for value in batch] for name, batch in inputs.items()}
        answer = self._call(
            ":predict",
            {"signature_name": signature, "inputs": columns},
            limit=answer_limit(pixels),
        )
        arrays = {}
        for name, value in self._field(answer, "outputs").items():
            try:
                if name.endswith("_bytes"):
                    value = np.array([base64.b64decode(item["b64"], validate=True) for item in value], object)
                arrays[name] = np.array(value)
            except (KeyError, TypeError, ValueError) as error:
                raise self._not_rest(f"output {name!r} cannot be read: {error}") from error
        return arrays

    def _field(self, content: Any, name: str) -> Mapping[str, Any]:
        """The object in a field of a JSON object."""
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, dict):
            raise self._not_rest(f"the answer has no object {name!r}")
        return value

    def _call(self, path: str, content: Any = None, *, limit: int) -> Any:
        """The JSON value of the server's answer, which may have `limit` bytes."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        deadline = time.monotonic() + self._timeout
        try:
            return json.loads(_within(self._timeout, lambda: self._open(request, limit, deadline)))
        except _Status as error:
            if error.code == 404:
                raise UserError(model_is_missing(self._address, self._model_name, str(error))) from error
            if error.code == 400 or error.code >= 500:
                raise RequestError(str(error)) from error
            raise UserError(f"{self._address} refuses requests: {error.code}: {error}") from error
        except _TIMEOUTS as error:
            raise RequestError(f"no answer from {self._address} within {self._timeout:g} s") from error
        except urllib.error.URLError as error:
            raise UserError(server_is_missing(self._address, one_line(str(error.reason)))) from error
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise self._not_rest(error) from error

    def _open(self, request: urllib.request.Request, limit: int, deadline: float) -> str:
        """The text of the answer. Raises _Status, TimeoutError or what urllib raises."""
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                body = _read(response, limit + 1, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise _Status(error.code, _error_text(error.code, _read(error, _ERROR_BYTES, deadline))) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, _TIMEOUTS):
                raise TimeoutError from error
            raise
        if len(body) > limit:
            raise RequestError(f"the answer of {self._address} is longer than {limit:,} bytes; use gRPC")
        return body.decode(errors="replace")

    def _not_rest(self, reason: Any) -> UserError:
        return UserError(f"{self._address} does not speak TensorFlow Serving's REST: {one_line(str(reason))}")


class _Status(Exception):
    """An HTTP status that is an error, with the server's message."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def _within(seconds: float, function) -> Any:
    """The result of a function, or TimeoutError after some seconds, whatever it waits for.

    The function then continues in its thread, which does not keep the process alive.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()

    def work():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)


def _read(response: Any, at_most: int, deadline: float) -> bytes:
    """The body of an answer, or its first bytes. Raises TimeoutError after the deadline."""
    body = bytearray()
    while len(body) < at_most:
        chunk = response.read1(min(_CHUNK, at_most - len(body)))
        if not chunk:
            break
        if time.monotonic() > deadline:
            raise TimeoutError
        body += chunk
    return bytes(body)


def _as_json(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value.tolist()


def _error_text(status: int, body: bytes) -> str:
    """The message in the body of TensorFlow Serving's answer, or the status and the body."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        if isinstance(error, str) and one_line(error):
            return one_line(error)
    return one_line(f"status {status} {http.client.responses.get(status, '')} {text}")
