"""From TFRecord to batches of images and panoptic targets."""
