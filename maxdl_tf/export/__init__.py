"""Exports of models as SavedModels for TF Serving and maxdl-predict."""
