"""Panoptic quality and its relatives."""
