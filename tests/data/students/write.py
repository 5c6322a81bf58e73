"""Write a small student in both layouts: `python -m tests.data.students.write OUT`.

`OUT/run/student.safetensors` is what a run leaves, `OUT/hub` what an export in Hugging Face's layout leaves.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP, save_student
from tests.models import loaded

PROMPTS = PromptSettings(carry="residual", prompt_depth=2, prompt_length=2)


def student() -> PromptedCLIP:
    """A student of the model `gelu` with random prompts, equal every time."""
    made = PromptedCLIP(replace(loaded("gelu"), name="local-dir:gelu"), PROMPTS)
    generator = torch.Generator().manual_seed(3)
    for tensor in made.prompt_tensors().values():
        tensor.normal_(generator=generator)
    return made


if __name__ == "__main__":
    out = Path(sys.argv[1])
    (out / "run").mkdir(parents=True)
    save_student(student(), out / "run")
    student().save_pretrained(out / "hub")
