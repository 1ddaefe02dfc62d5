"""Stand-ins for tensorflow_model_server: what the client and the docs rely on, done by the same rules in this process.

They are no TensorFlow Serving and prove nothing of its code. The SavedModel is run as there: in a session, with the
tensors that the signature names, by tags; what is checked, the status codes and the JSON follow its documentation.

    with GrpcStandIn(Servable("exports/shapes/1", "shapes")) as address:
        ...
"""

from __future__ import annotations

import base64
import json
import threading
from concurrent import futures
from http import server
from pathlib import Path

import numpy as np
import tensorflow as tf

METADATA_KEY = "signature_def"


class Refusal(Exception):
    """A status that is not OK: the name of a gRPC code, a message."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Servable:
    """A version of a model, loaded as servers do: with the tag `serve` and without this package.

    Attributes:
      signatures: SignatureDefs by name.
    """

    def __init__(self, path: str, name: str):
        self.name, self.version = name, int(Path(path).name)
        with tf.Graph().as_default():
            self._session = tf.compat.v1.Session()
            meta_graph = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(path))
        self.signatures = dict(meta_graph.signature_def)

    def check_name(self, name: str, version: int | None = None) -> None:
        if name != self.name:
            raise Refusal("NOT_FOUND", f"Servable not found for request: Latest({name})")
        if version not in (None, self.version):
            raise Refusal("NOT_FOUND", f"Servable not found for request: Specific({name}, {version})")

    def run(self, signature: str, inputs: dict[str, np.ndarray], output_filter=()) -> dict[str, np.ndarray]:
        if (signature or "serving_default") not in self.signatures:
            raise Refusal("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')
        signature = self.signatures[signature or "serving_default"]
        if set(inputs) != set(signature.inputs):
            raise Refusal("INVALID_ARGUMENT", f"inputs {sorted(inputs)}, expected {sorted(signature.inputs)}")
        for name, value in inputs.items():
            dtype = tf.dtypes.as_dtype(signature.inputs[name].dtype)
            if tf.dtypes.as_dtype(value.dtype) != dtype:
                raise Refusal("INVALID_ARGUMENT", f"input {name} is {value.dtype}, expected {dtype.name}")
        unknown = set(output_filter) - set(signature.outputs)
        if unknown:
            raise Refusal("INVALID_ARGUMENT", f"output tensor alias not found in signature: {min(unknown)}")
        fetches = {name: signature.outputs[name].name for name in (output_filter or signature.outputs)}
        try:
            return self._session.run(fetches, {signature.inputs[name].name: inputs[name] for name in inputs})
        except tf.errors.OpError as error:
            code = {tf.errors.INVALID_ARGUMENT: "INVALID_ARGUMENT"}.get(error.error_code, "INTERNAL")
            raise Refusal(
                code, getattr(error.__context__, "message", error.message)
            ) from error  # Without Python's part.


class GrpcStandIn:
    """tensorflow.serving.PredictionService with Predict and GetModelMetadata; needs tensorflow-serving-api."""

    def __init__(self, servable: Servable):
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
            def Predict(self, request, context):
                return _or_abort(context, lambda: _predict(servable, request))

            def GetModelMetadata(self, request, context):
                return _or_abort(context, lambda: _metadata(servable, request))

        # Servers take messages of any size; clients have to allow the answers.
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(futures.ThreadPoolExecutor(2), options=limits)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> str:
        self._server.start()
        return f"127.0.0.1:{self._port}"

    def __exit__(self, *exception) -> None:
        self._server.stop(grace=None).wait()


def _or_abort(context, answer):
    import grpc

    try:
        return answer()
    except Refusal as refusal:
        context.abort(getattr(grpc.StatusCode, refusal.code), str(refusal))


def _predict(servable: Servable, request):
    from tensorflow_serving.apis import predict_pb2

    spec = request.model_spec
    servable.check_name(spec.name, spec.version.value if spec.HasField("version") else None)
    inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    for name, value in servable.run(spec.signature_name, inputs, request.output_filter).items():
        response.outputs[name].CopyFrom(_as_field(value))
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.model_spec.signature_name = spec.signature_name or "serving_default"
    return response


def _as_field(value: np.ndarray):
    """A TensorProto with its numbers in int_val or float_val, as servers answer, and not in tensor_content."""
    proto = tf.make_tensor_proto(value)
    if proto.tensor_content:
        proto.ClearField("tensor_content")
        {np.dtype(np.int32): proto.int_val, np.dtype(np.float32): proto.float_val}[value.dtype].extend(value.ravel())
    return proto


def _metadata(servable: Servable, request):
    from tensorflow_serving.apis import get_model_metadata_pb2

    servable.check_name(request.model_spec.name)
    if list(request.metadata_field) != [METADATA_KEY]:
        raise Refusal("INVALID_ARGUMENT", f"Metadata field {list(request.metadata_field)} is not supported")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.metadata[METADATA_KEY].Pack(signatures)
    return response


_HTTP_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "FAILED_PRECONDITION": 412, "INTERNAL": 500}


class RestStandIn:
    """/v1/models/NAME[/versions/N]:predict in rows and in columns, and /metadata."""

    def __init__(self, servable: Servable):
        class Handler(server.BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(lambda: _rest_metadata(servable, self.path))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(lambda: _rest_predict(servable, self.path, body))

            def _answer(self, answer):
                try:
                    status, content = 200, answer()
                except Refusal as refusal:
                    status, content = _HTTP_STATUS[refusal.code], {"error": str(refusal)}
                # What is no UTF-8 goes out as it is.
                body = json.dumps(content, ensure_ascii=False).encode(errors="surrogateescape")
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self._server = server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{self._server.server_port}"

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()


def _check_path(servable: Servable, path: str, end: str) -> None:
    prefix = "/v1/models/"
    if not (path.startswith(prefix) and path.endswith(end)):
        raise Refusal("INVALID_ARGUMENT", f"Malformed request: {path}")
    name, _, version = path[len(prefix) : -len(end)].partition("/versions/")
    servable.check_name(name, int(version) if version else None)


def _rest_metadata(servable: Servable, path: str) -> dict:
    from google.protobuf import json_format

    _check_path(servable, path, "/metadata")
    signatures = {
        name: json_format.MessageToDict(signature, preserving_proto_field_name=True)
        for name, signature in servable.signatures.items()
    }
    spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
    return {"model_spec": spec, "metadata": {METADATA_KEY: {METADATA_KEY: signatures}}}


def _rest_predict(servable: Servable, path: str, body: bytes) -> dict:
    _check_path(servable, path, ":predict")
    try:
        request = json.loads(body)
    except ValueError as error:
        raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
    if ("instances" in request) == ("inputs" in request):
        raise Refusal("INVALID_ARGUMENT", "Missing 'inputs' or 'instances' key")
    name = request.get("signature_name", "serving_default")
    if name not in servable.signatures:
        raise Refusal("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    (only_input,) = servable.signatures[name].inputs
    if "instances" in request:
        is_named = [isinstance(row, dict) and "b64" not in row for row in request["instances"]]
        columns = {
            only_input: [row[only_input] if named else row for named, row in zip(is_named, request["instances"])]
        }
    else:
        inputs = request["inputs"]
        columns = inputs if isinstance(inputs, dict) else {only_input: inputs}
    dtype = tf.dtypes.as_dtype(servable.signatures[name].inputs[only_input].dtype).as_numpy_dtype
    outputs = servable.run(name, {key: np.array(_decoded(value), dtype) for key, value in columns.items()})
    outputs = {key: _encoded(key, value) for key, value in outputs.items()}
    if "inputs" in request:
        return {"outputs": outputs}
    return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}


def _decoded(value):
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return base64.b64decode(value["b64"], validate=True) if isinstance(value, dict) else value


def _encoded(name: str, value: np.ndarray) -> list:
    """Strings are taken for text, unless the output's name ends with _bytes."""
    if value.dtype != object:
        return value.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(string).decode()} for string in value]
    return [string.decode(errors="surrogateescape") for string in value]
