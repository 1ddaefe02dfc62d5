"""Saving, restoring and importing weights."""
