"""Stage two: a frozen CLIP with learnable prompts, trained on hard and cached soft labels."""

from student_train.student import PromptedCLIP, load_student

__all__ = ["PromptedCLIP", "load_student"]
