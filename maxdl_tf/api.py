"""The functions of `maxdl_tf` itself: experiments, models and predictors by name or path.

TensorFlow is imported where it is needed, so that errors in names and paths come at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maxdl_tf import config
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.tasks import checkpoint_experiment, checks

if TYPE_CHECKING:
    from maxdl_tf.inference.predictor import Predictor
    from maxdl_tf.inference.tiles import TiledPredictor
    from maxdl_tf.keras_api import keras
    from maxdl_tf.protos import experiment_pb2


def load_experiment(
    name_or_path: str | os.PathLike, overrides: str | Sequence[str] = (), **fields: Any
) -> experiment_pb2.Experiment:
    """Loads an experiment: the options of model, loss, data and training.

    Args:
      name_or_path: Name of a packaged experiment, such as "shapes/max_deeplab_tiny_81", or path of a textproto.
      overrides: Textproto fragments that are merged over the experiment in turn, such as "training { steps: 100 }".
      **fields: Fields that are merged over it last, as nested dictionaries, such as training={"steps": 100}.

    Returns:
      The experiment, a protocol buffer message: `experiment.training.steps` is a number. Placeholders such as
      `${COCO_TFRECORDS}` without an environment variable of that name remain; only reading the data needs them.

    Raises:
      UserError: The file is missing, a field is unknown, or a value is out of range.

    Example:
      experiment = maxdl_tf.load_experiment(
          "shapes/max_deeplab_tiny_81", model={"num_slots": 8}, train_dataset={"crop_size": 65}
      )
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    named = {f"overrides[{number}]": text for number, text in enumerate(overrides)}
    if fields:
        named["the keyword arguments"] = config.fields_to_text(fields)
    return config.load_experiment(os.fspath(name_or_path), named)


def build_model(
    experiment: experiment_pb2.Experiment | str | os.PathLike, checkpoint: str | os.PathLike | None = None
) -> keras.Model:
    """Builds the model of an experiment.

    Args:
      experiment: What `load_experiment` returns, or a name or path for it.
      checkpoint: Path of a checkpoint or of a folder with checkpoints, whose newest one is loaded. None keeps the
        initial weights, which are random.

    Returns:
      A Keras model that computes in float32. `model(images, training=False)` takes float [batch, height, width, 3],
      RGB in 0..255, each side a multiple of `model.size_multiple` plus 1. It returns
      `maxdl_tf.structs.PanopticOutputs`.

    Raises:
      UserError: The class table is missing, or the checkpoint is missing or of another model.

    Example:
      model = maxdl_tf.build_model("shapes/max_deeplab_tiny_81")
      outputs = model(tf.zeros([1, 81, 81, 3]), training=False)
      outputs.mask_logits.shape  # [1, 21, 21, 16]: batch, height / 4, width / 4, slots
    """
    experiment = _experiment(experiment)
    from maxdl_tf.tasks import task_of

    task = task_of(experiment)
    model = task.build_model()
    if checkpoint is not None:
        task.load_weights(model, os.fspath(checkpoint))
    return model


def load_predictor(
    path: str | os.PathLike, experiment: experiment_pb2.Experiment | str | os.PathLike | None = None
) -> Predictor | TiledPredictor:
    """Loads a model that predicts the panoptic segmentation of images.

    Args:
      path: Folder that maxdl-export wrote, in any format, or of its versions, whose highest one is loaded; or a folder
        of checkpoints, whose newest one is loaded; or one checkpoint, such as "runs/shapes/ckpt-2500".
      experiment: What `load_experiment` returns, or a name or path for it; only for checkpoints. None takes the
        `experiment.textproto` that maxdl-train leaves beside its checkpoints.

    Returns:
      A function of one image: `predictor(image)` takes a path, a PIL image, or a NumPy array, uint8 [height, width, 3]
      in RGB. It returns a `Prediction` with `label_map`, `segments` and `overlay()`. For a model that was trained for
      tiles, it is a `TiledPredictor`.

    Raises:
      UserError: There is no model at `path`, it has no experiment, or the two do not fit.

    Example:
      predictor = maxdl_tf.load_predictor("runs/shapes")
      result = predictor("photo.jpg")
      for segment in result.segments:
          print(predictor.dataset_info.by_id[segment.class_id].name, segment.score, segment.bbox)
      result.overlay().save("overlay.png")
    """
    path = os.fspath(path)
    export = checks.find_export(path)
    if export:
        if experiment is not None:
            raise UserError(f"{path} is an export, which has its own configuration; drop `experiment`")
        from maxdl_tf.inference.predictor import Predictor

        return Predictor.from_export(export).in_tiles()
    if not storage.is_folder(path) and not storage.exists(path + ".index"):
        raise UserError(
            f"{path} is no model: wanted the folder of an export, a folder of checkpoints, or a checkpoint such as "
            "runs/shapes/ckpt-2500; check the path"
        )
    if experiment is None:
        experiment = checkpoint_experiment.load(path)
    experiment = _experiment(experiment)
    from maxdl_tf.tasks.panoptic import PanopticTask

    predictor, _ = PanopticTask(experiment).build_predictor(path)
    return predictor.in_tiles()


def _experiment(experiment: experiment_pb2.Experiment | str | os.PathLike) -> experiment_pb2.Experiment:
    return load_experiment(experiment) if isinstance(experiment, (str, os.PathLike)) else experiment
