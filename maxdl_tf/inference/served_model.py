"""A model behind TensorFlow Serving, over gRPC or REST.

`GrpcServer` needs tensorflow-serving-api, the extra [serving]; `RestServer` needs nothing, but REST sends numbers as
text, several times their size.

Example:
  server = GrpcServer("localhost:8500", "shapes")  # or RestServer("localhost:8501", "shapes")
  model = ServedModel(server, dataset_info)
  prediction = model.predict("photo.jpg", pixels)
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

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.examples import encode_image_example
from maxdl_tf.errors import UserError
from maxdl_tf.files import images, storage
from maxdl_tf.inference.prediction import Prediction, segments_of
from maxdl_tf.inference.segmenter import OUTPUT_NAMES, SegmentTable

INPUT_OF_SIGNATURE = {"serving_default": "image_bytes", "image_tensor": "image", "tf_example": "examples"}
OUTPUTS = ("panoptic_map", "image_size", *OUTPUT_NAMES)
_TIMEOUTS = (TimeoutError, socket.timeout)  # Python 3.9 has two.


class RequestError(Exception):
    """The server failed one request; the next one may succeed."""


class Server(Protocol):
    """A connection to one model on a server.

    Both methods raise RequestError, or UserError if further requests would fail too.
    """

    def outputs_of(self, signature: str) -> list[str]:
        """The names of a signature's outputs."""

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; strings are arrays of bytes objects."""


class ServedModel:
    """Predicts with a model on a server.

    Args:
      server: The server.
      dataset_info: Class table of the model, which the server does not send.
      signature: Signature to call; it takes files, pixels or tf.Examples.

    Raises:
      UserError: The server does not answer, or it does not serve a model that maxdl-export wrote.
      RequestError: The server failed the request for its signatures.
    """

    def __init__(self, server: Server, dataset_info: DatasetInfo, signature: str = "serving_default"):
        missing = set(OUTPUTS) - set(server.outputs_of(signature))
        if missing:
            raise UserError(
                f"signature {signature} of the served model has no output {min(missing)}; serve what maxdl-export wrote"
            )
        self._server, self._signature = server, signature
        self.dataset_info = dataset_info

    def predict(self, path: str, image: np.ndarray) -> Prediction:
        """Predicts the segmentation of an image file.

        Args:
          path: Path of the file.
          image: Its pixels, uint8 [h, w, 3], from `images.read_image`.

        Raises:
          RequestError: The server refused the image or did not answer in time.
          UserError: The server is gone, or its model has other classes.
        """
        outputs = self._server.predict(self._signature, {INPUT_OF_SIGNATURE[self._signature]: self._batch(path, image)})
        # A server that batches requests pads the map to the largest image of the batch.
        height, width = outputs["image_size"][0]
        table = SegmentTable(*(outputs[name][0] for name in OUTPUT_NAMES))
        if (height, width) != image.shape[:2]:
            raise RequestError(
                f"the server saw {height} x {width} pixels, but the file has {image.shape[0]} x {image.shape[1]}"
            )
        try:
            segments = segments_of(table, self.dataset_info)
        except KeyError as error:
            raise UserError(
                f"the served model has a class {error}, which {self.dataset_info.name!r} lacks; give the model's table"
            ) from error
        return Prediction(outputs["panoptic_map"][0, :height, :width], segments, image, self.dataset_info)

    def _batch(self, path: str, image: np.ndarray) -> np.ndarray:
        if self._signature == "image_tensor":
            return image[np.newaxis]
        # Models that earlier versions exported ignore EXIF.
        encoded = images.as_upright_file(storage.read_file(path), path, max_pixels=image.shape[0] * image.shape[1])
        return np.array([encode_image_example(encoded) if self._signature == "tf_example" else encoded], object)


class GrpcServer:
    """A server over gRPC, with messages of any size.

    Args:
      address: host:port; TensorFlow Serving's default port for gRPC is 8500.
      model_name: Name of the model on the server.
      timeout: Seconds to wait for an answer.

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
        # The default limit of 4 MiB is a panoptic map of about 2 megapixels.
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
    """A server over REST: HTTP with JSON.

    Args:
      address: host:port, or the URL before `/v1/models`; TensorFlow Serving's default port for REST is 8501.
      model_name: Name of the model on the server.
      timeout: Seconds to wait for an answer.
    """

    def __init__(self, address: str, model_name: str, timeout: float = 60.0):
        self._address, self._model_name, self._timeout = address, model_name, timeout
        self._url = f"{address if storage.is_remote(address) else f'http://{address}'}/v1/models/{model_name}"

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
    """The text without names of graph nodes, which tell users nothing."""
    lines = [re.sub(r"^assertion failed: \[(.*)\]$", r"\1", line.strip()) for line in (details or "").splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("[["))
