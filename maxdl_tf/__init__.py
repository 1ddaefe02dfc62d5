"""MaX-DeepLab: end-to-end panoptic segmentation with mask transformers, in TensorFlow.

Paper: Wang, Zhu, Adam, Yuille, Chen, "MaX-DeepLab: End-to-End Panoptic Segmentation with Mask
Transformers", CVPR 2021, https://arxiv.org/abs/2012.00759.
"""

import os as _os
import sys as _sys

__version__ = "0.1.0"

# Keras here means the Keras 2 API, which the TensorFlow of Python 3.12 and later takes for `tf.keras` only if told so
# before it is imported. That of earlier Pythons has no other; told, it would in some places take the same from another
# package, whose classes are strangers to its own.
if _sys.version_info >= (3, 12):
    _os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
