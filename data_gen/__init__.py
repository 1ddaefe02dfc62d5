"""Data generation: annotated images to TFRecord shards."""
