"""A first config for a folder of images: the folder surveyed, the config written."""
