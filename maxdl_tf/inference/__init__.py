"""Prediction: images to panoptic maps and segments, and these to files."""
