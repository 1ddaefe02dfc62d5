"""TFRecord files to batches of images and targets, and COCO files."""
