"""The frozen teacher: loading an open_clip model and computing features with it."""
