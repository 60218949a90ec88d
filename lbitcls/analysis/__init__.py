"""What a run learned, to look at: pictures of images, predictions, mistakes and curves."""
