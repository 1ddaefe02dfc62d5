"""A model behind TensorFlow Serving, over gRPC or REST.

`GrpcServer` needs tensorflow-serving-api, the extra [serving]. `rest_server.RestServer` needs nothing, but REST sends
numbers as text, several times their size.

Example:
  server = GrpcServer("localhost:8500", "shapes")  # or RestServer("localhost:8501", "shapes")
  model = ServedModel(server, dataset_info)
  prediction = model.predict("photo.jpg", pixels)
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.examples import encode_image_example
from maxdl_tf.errors import UserError
from maxdl_tf.files import images, storage
from maxdl_tf.inference.prediction import Prediction, segments_of
from maxdl_tf.inference.segmenter import OUTPUT_NAMES, PNG_OUTPUT, SegmentTable

_INPUT_OF_SIGNATURE = {"image_tensor": "image", "tf_example": "examples"}  # Others take image_bytes.
# Shape of each output after the batch axis; a name stands for any length.
_SHAPES = {
    PNG_OUTPUT: (),
    "panoptic_map": ("height", "width"),
    "image_size": (2,),
    "num_segments": (),
    "segment_ids": ("slots",),
    "segment_class_ids": ("slots",),
    "segment_scores": ("slots",),
    "segment_areas": ("slots",),
    "segment_boxes": ("slots", 4),
}
_LEAST_LIMIT = 2**26  # For metadata, and for maps that a batching server pads.
_LIMIT_PER_PIXEL = 64  # A label, a score and a part of a PNG, as text.
_LONGEST_MESSAGE = 300  # Characters of a server's message that are shown.


class RequestError(Exception):
    """The server failed one request; the next one may succeed."""


class Server(Protocol):
    """A connection to one model on a server.

    Both methods raise RequestError, or UserError if further requests would fail too.
    """

    def signatures(self) -> dict[str, list[str]]:
        """The names of the outputs of each signature."""

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray], pixels: int) -> dict[str, np.ndarray]:
        """The outputs by name, for inputs with this number of pixels; strings are arrays of bytes objects."""


class ServedModel:
    """Predicts with a model on a server.

    Args:
      server: The server.
      dataset_info: Class table of the model, which the server does not send.
      signature: Signature to call; it takes files, pixels or tf.Examples. None: panoptic_png, whose answers are
        smallest, or serving_default where the model lacks it.

    Raises:
      UserError: The server does not answer, or it does not serve a model that maxdl-export wrote.
      RequestError: The server failed the request for its signatures.
    """

    def __init__(self, server: Server, dataset_info: DatasetInfo, signature: str | None = None):
        signatures = server.signatures()
        signature = signature or ("panoptic_png" if "panoptic_png" in signatures else "serving_default")
        if signature not in signatures:
            names = ", ".join(sorted(name for name in signatures if not name.startswith("__")))
            raise UserError(f"the served model has no signature {signature}; it has {names}")
        self._outputs = outputs_of(signature)
        missing = set(self._outputs) - set(signatures[signature])
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
          image: Its pixels, uint8 [h, w, 3], from `images.read_image` with the rule of the class table.

        Raises:
          RequestError: The server refused the image or did not answer in time.
          UserError: The server is gone, or its model has other classes.
        """
        height, width = image.shape[:2]
        inputs = {_INPUT_OF_SIGNATURE.get(self._signature, "image_bytes"): self._batch(path, image)}
        outputs = _of_one_image(self._server.predict(self._signature, inputs, height * width), self._outputs)
        seen = outputs["image_size"].tolist()
        if seen != [height, width]:
            raise RequestError(f"the server saw {seen[0]} x {seen[1]} pixels, but the file has {height} x {width}")
        if PNG_OUTPUT in outputs:
            label_map = _label_map_of(outputs[PNG_OUTPUT], height * width, self.dataset_info.void)
        else:  # A server that batches requests pads the map to the largest image of the batch.
            label_map = outputs["panoptic_map"][:height, :width]
        table = SegmentTable(*(outputs[name] for name in OUTPUT_NAMES))
        _check_labels(label_map, table, seen, self.dataset_info)
        return Prediction(label_map, segments_of(table, self.dataset_info), image, self.dataset_info)

    def _batch(self, path: str, image: np.ndarray) -> np.ndarray:
        if self._signature == "image_tensor":
            return image[np.newaxis]
        # Models that earlier versions exported ignore EXIF.
        encoded = images.as_upright_file(
            storage.read_file(path), path, image.shape[0] * image.shape[1], self.dataset_info.intensity
        )
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

    def signatures(self) -> dict[str, list[str]]:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model_name
        response = self._call(self._service.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._reading_an_answer():
            response.metadata["signature_def"].Unpack(signatures)
        return {name: list(signature.outputs) for name, signature in signatures.signature_def.items()}

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray], pixels: int) -> dict[str, np.ndarray]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        outputs = self._call(self._service.Predict, request).outputs
        for name, value in outputs.items():  # A short message may stand for a huge tensor of equal values.
            size = math.prod(dimension.size for dimension in value.tensor_shape.dim)
            if size > answer_limit(pixels):
                raise RequestError(f"output {name} of {self._address} has {size:,} values, too many for the image")
        with self._reading_an_answer():
            return {name: tf.make_ndarray(value) for name, value in outputs.items()}

    @contextlib.contextmanager
    def _reading_an_answer(self) -> Iterator[None]:
        from google.protobuf.message import DecodeError

        try:
            yield
        except (DecodeError, TypeError, ValueError) as error:
            raise UserError(f"{self._address} does not answer like TensorFlow Serving: {error}") from error

    def _call(self, method, request):
        import grpc

        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            codes, details = grpc.StatusCode, one_line(error.details())
            if error.code() == codes.UNAVAILABLE:
                raise UserError(server_is_missing(self._address, details)) from error
            if error.code() == codes.DEADLINE_EXCEEDED:
                raise RequestError(f"no answer from {self._address} within {self._timeout:g} s") from error
            if error.code() == codes.NOT_FOUND:
                raise UserError(model_is_missing(self._address, self._model_name, details)) from error
            if error.code() in (codes.INVALID_ARGUMENT, codes.RESOURCE_EXHAUSTED, codes.INTERNAL):
                raise RequestError(details) from error
            raise UserError(f"{self._address} refuses requests: {error.code().name}: {details}") from error


def outputs_of(signature: str) -> tuple[str, ...]:
    """The outputs of a signature of an export, without those on request."""
    return (PNG_OUTPUT if signature == "panoptic_png" else "panoptic_map", "image_size", *OUTPUT_NAMES)


def _of_one_image(outputs: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, Any]:
    """The outputs of these names for the only image of a batch: int32 and float32 arrays, and bytes of a PNG.

    Raises:
      UserError: An output is missing, or is not what maxdl-export documents.
    """
    found, lengths = {}, {}
    for name in names:
        shape, array = _SHAPES[name], outputs.get(name, np.array(None))
        type_ = {PNG_OUTPUT: bytes, "segment_scores": np.float32}.get(name, np.int32)
        fits = array.ndim == len(shape) + 1 and len(array) == 1
        fits = fits and all(
            length == (lengths.setdefault(wanted, length) if isinstance(wanted, str) else wanted)
            for length, wanted in zip(array.shape[1:], shape)
        )
        if not fits or not _holds(array, type_):
            wanted = ", ".join(map(str, (1, *shape)))
            raise UserError(
                f"output {name} of the served model is {array.dtype} {list(array.shape)}; wanted "
                f"{'' if type_ is bytes else 'finite '}{type_.__name__} [{wanted}]; serve what maxdl-export wrote"
            )
        found[name] = array[0] if type_ is bytes else array[0].astype(type_)
    return found


def _holds(array: np.ndarray, type_: type) -> bool:
    """Whether an array holds values of this type, or numbers that fit into it."""
    if type_ is bytes:
        return all(isinstance(value, bytes) for value in array)
    limits = np.finfo(type_) if type_ is np.float32 else np.iinfo(type_)
    if array.dtype.kind not in ("fiu" if type_ is np.float32 else "iu"):
        return False
    return not array.size or (limits.min <= array.min() and array.max() <= limits.max)


def _label_map_of(png: bytes, max_pixels: int, void: int) -> np.ndarray:
    """int32 [height, width], the label map in a PNG of the served model.

    Raises:
      UserError: It is not a PNG of colors, is damaged, or has more than `max_pixels` pixels.
    """
    name = f"output {PNG_OUTPUT} of the served model"
    image = images.open_image(io.BytesIO(png), name, ("PNG",), max_pixels)
    if image.mode != "RGB":
        raise UserError(f"{name} has mode {image.mode}; wanted RGB; serve what maxdl-export wrote")
    label_map = panoptic_ids.color_to_id(np.asarray(image))
    label_map[label_map == 0] = void
    return label_map


def _check_labels(label_map: np.ndarray, table: SegmentTable, size: list[int], dataset_info: DatasetInfo) -> None:
    """Raises UserError unless the map has the image's size, and its labels are those of the table or void."""
    if list(label_map.shape) != size:
        got, wanted = (" x ".join(map(str, sides)) for sides in (label_map.shape, size))
        raise UserError(f"the served model returns a map of {got} pixels for an image of {wanted}; export it again")
    if not 0 <= table.count <= len(table.ids):
        raise UserError(f"the served model returns {table.count} segments of {len(table.ids)} slots; export it again")
    ids, class_ids, scores, areas, _ = (column[: table.count] for column in table[1:])
    if not (((scores >= 0) & (scores < 1.001)).all() and (areas >= 0).all()):
        raise UserError("the served model returns scores beyond 0 and 1, or negative areas; export it again")
    for label, class_id in zip(ids.tolist(), class_ids.tolist()):
        if class_id not in dataset_info.by_id:
            raise UserError(
                f"the served model has a class {class_id}, which {dataset_info.name!r} lacks; give the model's table"
            )
        if label // dataset_info.label_divisor != class_id:
            raise UserError(
                f"the served model has a segment {label} of class {class_id}, which does not fit label_divisor "
                f"{dataset_info.label_divisor} of {dataset_info.name!r}; give the model's table"
            )
    strange = label_map[~np.isin(label_map, [dataset_info.void, *ids])]
    if strange.size:
        raise UserError(f"the served model returns pixels of {strange[0]}, which is not a segment; export it again")


def answer_limit(pixels: int) -> int:
    """Largest number of bytes or of values in the answer to an image of `pixels` pixels."""
    return _LEAST_LIMIT + _LIMIT_PER_PIXEL * pixels


def server_is_missing(address: str, details: str) -> str:
    return f"no server answers at {address} ({details}); is it running, and is this its port for gRPC or REST?"


def model_is_missing(address: str, model_name: str, details: str) -> str:
    return f"{address} does not serve a model {model_name} ({details}); compare with the server's --model_name"


def one_line(details: str | None) -> str:
    """A server's message without names of graph nodes, which tell users nothing, and without control characters."""
    lines = [re.sub(r"^assertion failed: \[(.*)\]$", r"\1", line.strip()) for line in (details or "").splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith("[["))
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."
