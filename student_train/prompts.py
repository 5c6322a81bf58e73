"""The learnable tensors of a prompted tower, and nothing else.

Settings, initial values, and which of the tensors can learn at all. How a tower reads them is in `towers.py`.

Shapes: J prompt depth, n prompt length, W tower width, L blocks of the tower.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from teacher_cache.errors import UsageError

DEFAULT_DEPTH = 9  # as in MaPLe and PromptSRC
INIT_STD = 0.02
LONGEST_PROMPT = 4096  # a student's file says how long; memory for any number is not asked for

Tower = Literal["text", "vision"]


class PromptSettings(BaseModel):
    """What prompts a student has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    towers: Literal["both", "text", "vision"] = Field(default="both", description="towers that get prompts")
    prompt_structure: Literal["qkv", "shared"] = Field(
        default="qkv", description="separate prompts for query, key and value (RPP), or one for all (IVLP)"
    )
    carry: Literal["replace", "residual"] = Field(
        default="replace",
        description="prompt positions between blocks: replaced by the block's own prompts (as published), or "
        "carried on, with the block's own prompts added to what its norm reads",
    )
    prompt_depth: int | None = Field(
        default=None,
        ge=0,
        description=f"first blocks with prompts of their own [default: {DEFAULT_DEPTH} or all]",
    )
    prompt_length: int = Field(default=4, ge=1, le=LONGEST_PROMPT, description="prompt positions of a tower")
    prompt_init: str = Field(
        default="a photo of a",
        description="words whose token embeddings the text prompts start from; positions beyond them start "
        "random, words beyond the positions are left out",
    )

    def depth_of(self, tower: Tower, blocks: int) -> int:
        """Prompt depth J in a tower of `blocks` blocks.

        Raises:
            UsageError: deeper than the tower.
        """
        if self.towers not in ("both", tower):
            return 0
        if self.prompt_depth is None:
            return min(DEFAULT_DEPTH, blocks)
        if self.prompt_depth > blocks:
            raise UsageError(
                f"prompt depth {self.prompt_depth} is more than the {blocks} blocks of the {tower} tower"
            )
        return self.prompt_depth


def dead_query_blocks(settings: PromptSettings, depth: int, blocks: int) -> list[int]:
    """Blocks (1-based) whose query prompts nothing reads, so that their gradient is exactly zero.

    A query prompt acts only through what its block writes at the prompt positions. That is read if a later
    block reads these rows: under `replace` block l + 1 does not for l < J, and behind the last block nobody
    does under either carry. A shared prompt is key and value as well and never dead.
    """
    if settings.prompt_structure == "shared":
        return []
    return [
        block
        for block in range(1, depth + 1)
        if block == blocks or (settings.carry == "replace" and block < depth)
    ]


class Prompts(nn.Module):
    """P_q, P_k and P_v of the first J blocks of one tower.

    Attributes:
        q, k, v: learnable, float32 [J, n, W]; one and the same parameter in the structure `shared`. The text
            prompts of block 1 include the position embeddings of positions 1..n.
        start: float32 [n, W], what stands at the prompt positions before block 1 under carry `residual`;
            None under `replace`.
    """

    start: Tensor | None

    def __init__(
        self, settings: PromptSettings, depth: int, first_nW: Tensor, generator: torch.Generator
    ) -> None:
        """Args:
        settings: structure and carry.
        depth: J, at least 1.
        first_nW: the shared prompt of block 1. Under `replace` q, k and v of block 1 begin equal to it and
            deeper blocks with normal(0, 0.02), equal for q, k and v: both structures start from the same
            function. Under `residual` it is `start`, and q, k and v begin at zero.
        generator: source of the random values, on the CPU.
        """
        super().__init__()
        self.carry = settings.carry
        initial_JnW = torch.zeros(depth, *first_nW.shape)
        if settings.carry == "replace":
            initial_JnW.normal_(0, INIT_STD, generator=generator)
            initial_JnW[0] = first_nW
        self.q = nn.Parameter(initial_JnW)
        self.k = self.q if settings.prompt_structure == "shared" else nn.Parameter(initial_JnW.clone())
        self.v = self.q if settings.prompt_structure == "shared" else nn.Parameter(initial_JnW.clone())
        self.register_buffer("start", first_nW.clone() if settings.carry == "residual" else None)

    @property
    def depth(self) -> int:
        """J."""
        return self.q.shape[0]

    @property
    def length(self) -> int:
        """n."""
        return self.q.shape[1]

    def by_block(self) -> Tensor:
        """P_q, P_k, P_v of every block, [J, 3, n, W]; a prompt that is not read gets a gradient of zeros."""
        return torch.stack([self.q, self.k, self.v], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """What has to be stored, by name, each tensor once (`shared` stores `q` alone)."""
        return {name: tensor.detach() for name, tensor in [*self.named_parameters(), *self.named_buffers()]}
