import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.export.serving_model import WARM_UP_FILE
from tests.inference.color_network import CROP_SIZE
from tests.serving_stand_ins import Servable


def test_the_file_is_where_tf_serving_looks_for_it():
    assert WARM_UP_FILE == "assets.extra/tf_serving_warmup_requests"


def test_tf_serving_reads_and_the_model_answers_each_request(color_export):
    """Read with TensorFlow Serving's own classes, which keep what they do not know: nothing may be left there."""
    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2", reason="needs tensorflow-serving-api, the extra [serving]"
    )
    servable, seen = Servable(str(color_export), "colors"), []
    for record in tf.data.TFRecordDataset(str(color_export / WARM_UP_FILE)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        rebuilt = prediction_log_pb2.PredictionLog()
        rebuilt.predict_log.request.model_spec.signature_name = request.model_spec.signature_name
        for name, value in request.inputs.items():
            rebuilt.predict_log.request.inputs[name].CopyFrom(value)
        assert rebuilt.SerializeToString() == record
        seen.append(request.model_spec.signature_name)
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        outputs = servable.run(seen[-1], inputs)
        np.testing.assert_array_equal(outputs["image_size"], [CROP_SIZE])
        assert outputs["num_segments"] > 0  # Also what works on segments is warm.
    assert sorted(seen) == sorted(tf.saved_model.load(str(color_export)).signatures)
