"""Norms of prompts, and those without effect."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.report.gather import gather
from pipeline.report.inside import norms
from pipeline.report.pieces import Figures, Text
from pipeline.report.prompts import prompt_norms, tower_blocks
from student_train.model.settings import PromptSettings
from student_train.model.stored import StoredStudent, StudentRecord, read_student
from student_train.model.student import PromptedCLIP
from tests.models import loaded


def stored(**settings: Any) -> tuple[StoredStudent, PromptedCLIP]:
    """Return a stored student of a model with three blocks per tower."""
    student = PromptedCLIP(loaded("gelu"), PromptSettings(prompt_length=2, **settings))
    for number, prompts in enumerate(student.parameters()):
        if prompts.requires_grad:  # some begin at zero
            torch.nn.init.normal_(prompts, generator=torch.Generator().manual_seed(number))
    record: StudentRecord = student.describe()
    return StoredStudent(Path("x"), record, student.prompt_tensors(), "", None), student


@pytest.mark.parametrize("structure", ["qkv", "shared"])
@pytest.mark.parametrize("carry", ["replace", "residual"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_norms_and_dead_prompts_are_the_students(structure: str, carry: str, depth: int) -> None:
    found, student = stored(prompt_structure=structure, carry=carry, prompt_depth=depth)
    towers = prompt_norms(found, student.base.config)
    assert [tower.tower for tower in towers] == ["text", "vision"]
    for tower in towers:
        prompts = student.prompts[tower.tower]
        letters = {"query": prompts.q, "key": prompts.k, "value": prompts.v, "shared": prompts.q}
        assert list(tower.norms) == (["shared"] if structure == "shared" else ["query", "key", "value"])
        for name, values in tower.norms.items():
            plain = [
                sum(float((vector**2).sum()) ** 0.5 for vector in block) / 2
                for block in letters[name].detach()
            ]
            assert values == pytest.approx(plain, rel=1e-5)
    dead = {line.split(":")[0]: line for line in student.describe_unused()}
    for tower in towers:
        assert bool(tower.dead) == (tower.tower in dead)
        if tower.dead:
            words = (
                f"block {tower.dead[0]} " if len(tower.dead) == 1 else f"{tower.dead[0]} to {tower.dead[-1]} "
            )
            assert words in dead[tower.tower]


def test_blocks_of_a_tower() -> None:
    assert tower_blocks({"text_cfg": {"layers": 7}}, "text") == 7
    assert tower_blocks({"text_cfg": {}}, "text") == 12, "open_clip's default"
    assert tower_blocks({}, "vision") == 12
    assert tower_blocks({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "vision") == 12, "a ResNet has no prompts"


def test_the_report_shows_dead_prompts_as_dead(run_path: Path) -> None:
    section = norms(gather(run_path))
    (figures,) = (piece for piece in section if isinstance(piece, Figures))
    text, vision = figures.figures
    # three blocks with prompts, of four and of five: the query prompts of the first two are not read
    for figure, tower in ((text, "text"), (vision, "vision")):
        rows = {str(row[0]): list(map(str, row[1:])) for row in figure.table.rows}
        assert rows["query"][:2] == ["dead", "dead"]
        tensors = read_student(run_path).tensors
        assert float(rows["query"][2]) == pytest.approx(
            float(tensors[f"{tower}.q"][2].norm(dim=-1).mean()), abs=1e-4
        )
        assert "dead" not in rows["key"] + rows["value"]
        assert figure.drawing.count("url(#hatched)") == 2
    assert any("These query prompts have no effect" in p.text for p in section if isinstance(p, Text))
