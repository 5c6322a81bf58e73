"""Input of training steps: the order of samples, stored arrays, pixels, and their join."""
