"""Keras layers of MaX-DeepLab, one for each part of the paper's figures. They read no options and no files."""
