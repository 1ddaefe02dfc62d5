"""Measurements of models and of the machine that runs them."""
