"""Stage two: a frozen CLIP with learnable prompts, trained on hard and cached soft labels."""
