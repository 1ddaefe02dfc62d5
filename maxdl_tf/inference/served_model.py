"""A model that TensorFlow Serving serves, asked for one image after the other.

server = GrpcServer("localhost:8500", "shapes")     # or RestServer("localhost:8501", "shapes")
model = ServedModel(server, dataset_info)
prediction = model.predict("photo.jpg", pixels)
"""

from __future__ import annotations

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.examples import encode_image_example
from maxdl_tf.errors import UserError
from maxdl_tf.files import images, storage
from maxdl_tf.inference.predictor import Prediction
from maxdl_tf.inference.segment_table import OUTPUT_NAMES, SegmentTable
from maxdl_tf.inference.segments import segments_of
from maxdl_tf.inference.servers import RequestError, Server

INPUT_OF_SIGNATURE = {"serving_default": "image_bytes", "image_tensor": "image", "tf_example": "examples"}
OUTPUTS = ("panoptic_map", "image_size", *OUTPUT_NAMES)


class ServedModel:
    """Predicts with a model on a server.

    Args:
      server: Which, and how it is talked to.
      dataset_info: Class table of the model; the server has it, but does not give it.
      signature: Decides what is sent: files, pixels or tf.Examples.

    Raises:
      UserError: The server or the model is not there, or the model is another one.
      RequestError: The server did not answer.
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
        """Predicts for the image in a file.

        Args:
          path: Of the file.
          image: Its pixels, uint8 [h, w, 3], RGB, upright (`images.read_image`).

        Raises:
          RequestError: The server refused the image or did not answer in time.
          UserError: The server is gone, or its model is of other classes.
        """
        outputs = self._server.predict(self._signature, {INPUT_OF_SIGNATURE[self._signature]: self._batch(path, image)})
        # A server that makes batches pads the map to the largest image of the batch.
        height, width = outputs["image_size"][0]
        table = SegmentTable(*(outputs[name][0] for name in OUTPUT_NAMES))
        if (height, width) != image.shape[:2]:
            raise RequestError(f"the server saw {height} x {width} pixels, the file has {image.shape[:2]}")
        try:
            segments = segments_of(table, self.dataset_info)
        except KeyError as error:
            raise UserError(
                f"the served model has a class {error}, {self.dataset_info.name!r} has none; give the model's own table"
            ) from error
        return Prediction(outputs["panoptic_map"][0, :height, :width], segments, image, self.dataset_info)

    def _batch(self, path: str, image: np.ndarray) -> np.ndarray:
        if self._signature == "image_tensor":
            return image[np.newaxis]
        encoded = images.as_upright_file(storage.read_file(path), path)
        return np.array([encode_image_example(encoded) if self._signature == "tf_example" else encoded], object)
