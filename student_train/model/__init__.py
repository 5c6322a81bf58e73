"""The student: a frozen CLIP with prompts in its towers, and its stored form."""
