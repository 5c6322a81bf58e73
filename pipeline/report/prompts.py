"""How large the prompts of a student have become, block by block, and which of them nothing reads.

Shapes: J prompt depth, n prompt length, W tower width.
"""

from dataclasses import dataclass
from typing import Any

from student_train.model.prompts import unused_query_blocks
from student_train.model.stored import StoredStudent

# What open_clip takes where a config does not say.
BLOCKS = 12


@dataclass(frozen=True)
class TowerNorms:
    """Of one tower's prompts.

    Attributes:
        norms: by query, key, value (or the one that is `shared`) the mean length of the n vectors, for
            each of the J blocks.
        dead: blocks, from 1, whose query prompts nothing reads.
    """

    tower: str
    norms: dict[str, list[float]]
    dead: list[int]


def prompt_norms(stored: StoredStudent, config: dict[str, Any]) -> list[TowerNorms]:
    """Of each tower that has prompts; `config` is the frozen model's, which says how many blocks it has."""
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
    """Blocks of a tower that can have prompts."""
    part = config.get(f"{tower}_cfg")
    layers = part.get("layers", BLOCKS) if isinstance(part, dict) else BLOCKS
    return layers if isinstance(layers, int) else BLOCKS
