"""The frozen model: loaded from open_clip, and run."""
