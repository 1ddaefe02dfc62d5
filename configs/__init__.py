"""Experiments and class tables as textprotos, installed as package data."""
