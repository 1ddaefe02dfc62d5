"""Evaluation of a model or of predictions in files. Only `model_images` and `accuracy` import TensorFlow."""
