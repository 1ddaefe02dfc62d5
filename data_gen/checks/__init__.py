"""Checks of COCO files and of TFRecords before training."""
