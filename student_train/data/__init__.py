"""What a training step reads: the order of samples, stored arrays, pixels, and their join."""
