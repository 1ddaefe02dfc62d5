"""MaX-DeepLab: end-to-end panoptic segmentation with mask transformers, in TensorFlow.

Paper: Wang, Zhu, Adam, Yuille, Chen, "MaX-DeepLab: End-to-End Panoptic Segmentation with Mask
Transformers", CVPR 2021, https://arxiv.org/abs/2012.00759.

Example:

    import maxdl_tf

    predictor = maxdl_tf.load_predictor("exports/cells/1")  # or a checkpoint folder
    result = predictor("photo.jpg")  # or a PIL image or a NumPy array
    result.overlay().save("overlay.png")

The names below are loaded on first use, so that the import itself costs nothing. docs/python_api.md shows more.
"""

import importlib as _importlib
import os as _os
import sys as _sys

__version__ = "0.1.0"

# Keras here means the Keras 2 API, which the TensorFlow of Python 3.12 and later takes for `tf.keras` only if told so
# before it is imported. That of earlier Pythons has no other; told, it would in some places take the same from another
# package, whose classes are strangers to its own.
if _sys.version_info >= (3, 12):
    _os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

TYPE_CHECKING = False  # Type checkers and editors take it for true; importing `typing` would double the import time.
if TYPE_CHECKING:
    from maxdl_tf.api import build_model, load_experiment, load_predictor
    from maxdl_tf.errors import UserError
    from maxdl_tf.evaluation.quality import PanopticQuality

_MODULE_OF = {
    "PanopticQuality": "maxdl_tf.evaluation.quality",
    "UserError": "maxdl_tf.errors",
    "build_model": "maxdl_tf.api",
    "load_experiment": "maxdl_tf.api",
    "load_predictor": "maxdl_tf.api",
}
__all__ = ["PanopticQuality", "UserError", "build_model", "load_experiment", "load_predictor"]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'maxdl_tf' has no attribute {name!r}")
    value = globals()[name] = getattr(_importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list:
    return sorted({*globals(), *__all__})
