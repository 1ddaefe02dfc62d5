"""From an image to a panoptic map, and the map as a picture."""
