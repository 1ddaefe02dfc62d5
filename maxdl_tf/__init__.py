"""MaX-DeepLab: end-to-end panoptic segmentation with mask transformers, in TensorFlow.

Paper: Wang, Zhu, Adam, Yuille, Chen, "MaX-DeepLab: End-to-End Panoptic Segmentation with Mask
Transformers", CVPR 2021, https://arxiv.org/abs/2012.00759.
"""

import os as _os

__version__ = "0.1.0"

# Keras here means the Keras 2 API. TensorFlow reads this once, when it is imported, so it is set
# before any module of the package can import it.
_os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
