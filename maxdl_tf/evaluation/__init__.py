"""Comparison of predictions with the truth: counts, errors, intervals, reports. Without TensorFlow."""
