"""TensorFlow Serving as a client sees it, over gRPC and over REST.

`GrpcServer` needs tensorflow-serving-api, the extra [serving]; `RestServer` needs nothing. Numbers travel as text over
REST, which takes several times their bytes.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from maxdl_tf.errors import UserError

_TIMEOUTS = (TimeoutError, socket.timeout)  # Python 3.9 has two.


class RequestError(Exception):
    """The server did not do a request; the next one may succeed."""


class Server(Protocol):
    """A model on a server.

    Both methods raise RequestError, or UserError where further requests would fail too.
    """

    def outputs_of(self, signature: str) -> list[str]:
        """The names of a signature's outputs."""

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; strings are arrays of bytes objects."""


class GrpcServer:
    """Over gRPC, messages of any size.

    Args:
      address: host:port; TensorFlow Serving's own port for it is 8500.
      model_name: What the server calls the model.
      timeout: Seconds for an answer.

    Raises:
      UserError: tensorflow-serving-api is not installed.
    """

    def __init__(self, address: str, model_name: str, timeout: float = 60.0):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise UserError(
                "gRPC needs tensorflow-serving-api; install it with pip install 'maxdl_tf[serving]', or use REST"
            ) from error
        # 4 MiB if nothing is said, which is a panoptic map of some 2 megapixels.
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address, limits)
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._address, self._model_name, self._timeout = address, model_name, timeout

    def outputs_of(self, signature: str) -> list[str]:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model_name
        response = self._call(self._service.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        _check_signature(signature, signatures.signature_def)
        return list(signatures.signature_def[signature].outputs)

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        response = self._call(self._service.Predict, request)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def _call(self, method, request):
        import grpc

        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            codes, details = grpc.StatusCode, _one_line(error.details())
            if error.code() == codes.UNAVAILABLE:
                raise UserError(_not_there(self._address, details)) from error
            if error.code() == codes.DEADLINE_EXCEEDED:
                raise RequestError(f"no answer from {self._address} within {self._timeout:g} s") from error
            if error.code() == codes.NOT_FOUND:
                raise UserError(_no_model(self._address, self._model_name, details)) from error
            if error.code() in (codes.INVALID_ARGUMENT, codes.RESOURCE_EXHAUSTED, codes.INTERNAL):
                raise RequestError(details) from error
            raise UserError(f"{self._address} refuses requests: {error.code().name}: {details}") from error


class RestServer:
    """Over HTTP with JSON.

    Args:
      address: host:port, or a URL in front of `/v1/models`; TensorFlow Serving's own port for it is 8501.
      model_name: What the server calls the model.
      timeout: Seconds for an answer.
    """

    def __init__(self, address: str, model_name: str, timeout: float = 60.0):
        self._address, self._model_name, self._timeout = address, model_name, timeout
        self._url = f"{address if '://' in address else f'http://{address}'}/v1/models/{model_name}"

    def outputs_of(self, signature: str) -> list[str]:
        signatures = self._call("/metadata")["metadata"]["signature_def"]["signature_def"]
        _check_signature(signature, signatures)
        return list(signatures[signature]["outputs"])

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = {name: [_as_json(value) for value in batch] for name, batch in inputs.items()}
        outputs = self._call(":predict", {"signature_name": signature, "inputs": columns})["outputs"]
        return {name: np.array(value) for name, value in outputs.items()}

    def _call(self, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return json.loads(response.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            details = _error_text(error)
            if error.code == 404:
                raise UserError(_no_model(self._address, self._model_name, details)) from error
            if error.code == 400 or error.code >= 500:
                raise RequestError(details) from error
            raise UserError(f"{self._address} refuses requests: {error.code}: {details}") from error
        except _TIMEOUTS as error:
            raise RequestError(f"no answer from {self._address} within {self._timeout:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, _TIMEOUTS):
                raise RequestError(f"no answer from {self._address} within {self._timeout:g} s") from error
            raise UserError(_not_there(self._address, str(error.reason))) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(f"{self._address} does not speak TensorFlow Serving's REST: {error}") from error


def _as_json(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value.tolist()


def _check_signature(signature: str, signatures: Mapping[str, Any]) -> None:
    if signature not in signatures:
        names = ", ".join(sorted(name for name in signatures if not name.startswith("__")))
        raise UserError(f"the served model has no signature {signature}; it has {names}")


def _not_there(address: str, details: str) -> str:
    return f"no server answers at {address} ({details}); is it running, and is this its port for gRPC or REST?"


def _no_model(address: str, model_name: str, details: str) -> str:
    return f"{address} does not serve a model {model_name} ({details}); compare with the server's --model_name"


def _error_text(error: urllib.error.HTTPError) -> str:
    """The message in the body of TensorFlow Serving's answer, or the body itself."""
    body = error.read().decode(errors="replace")
    try:
        return _one_line(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return _one_line(body) or str(error)


def _one_line(details: str) -> str:
    """Without the names of graph nodes, which tell users nothing."""
    lines = [re.sub(r"^assertion failed: \[(.*)\]$", r"\1", line.strip()) for line in (details or "").splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("[["))
