"""Conversion of annotated images to TFRecord shards."""
