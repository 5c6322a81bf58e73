"""The learnable tensors of a prompted tower, and nothing else.

Settings, initial values, and which of the tensors can learn at all. How a tower reads them is in `towers.py`.

Shapes: J prompt depth, n prompt length, W tower width, L blocks of the tower.
"""

import torch
from torch import Tensor, nn

from student_train.model.settings import PromptSettings

INIT_STD = 0.02


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
