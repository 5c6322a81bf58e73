"""Norms of a student's prompts by block, and which prompts have no effect.

Shapes: J prompt depth, n prompt length, W tower width.
"""

from dataclasses import dataclass
from typing import Any

from student_train.model.prompts import unused_query_blocks
from student_train.model.stored import StoredStudent

# open_clip's default number of blocks.
BLOCKS = 12


@dataclass(frozen=True)
class TowerNorms:
    """Norms of the prompts of one tower.

    Attributes:
        norms: mean norm of the n vectors in each of the J blocks, by query, key and value, or `shared`.
        dead: blocks, from 1, whose query prompts have no effect.
    """

    tower: str
    norms: dict[str, list[float]]
    dead: list[int]


def prompt_norms(stored: StoredStudent, config: dict[str, Any]) -> list[TowerNorms]:
    """Return the norms of each tower with prompts; `config` is the frozen model's."""
    found = []
    for tower in ("text", "vision"):
        if f"{tower}.q" not in stored.tensors:
            continue
        shared = f"{tower}.k" not in stored.tensors
        names = {"shared": "q"} if shared else {"query": "q", "key": "k", "value": "v"}
        norms = {
            name: stored.tensors[f"{tower}.{letter}"].float().norm(dim=-1).mean(dim=-1).tolist()
            for name, letter in names.items()
        }
        depth = len(next(iter(norms.values())))
        dead = unused_query_blocks(stored.record.prompts, depth, tower_blocks(config, tower))
        found.append(TowerNorms(tower, norms, dead))
    return found


def tower_blocks(config: dict[str, Any], tower: str) -> int:
    """Return the number of blocks of a tower."""
    part = config.get(f"{tower}_cfg")
    layers = part.get("layers", BLOCKS) if isinstance(part, dict) else BLOCKS
    return layers if isinstance(layers, int) else BLOCKS
