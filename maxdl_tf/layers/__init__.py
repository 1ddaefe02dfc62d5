"""Keras layers of MaX-DeepLab: each one a row of the paper's figures, ignorant of options and files."""
