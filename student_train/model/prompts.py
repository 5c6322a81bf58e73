"""The learnable tensors of a prompted tower: initial values, and which of them can learn.

`towers.py` computes with them.

Shapes: J prompt depth, n prompt length, W tower width, L blocks of the tower.
"""

import torch
from torch import Tensor, nn

from student_train.model.settings import PromptSettings

INIT_STD = 0.02


def unused_query_blocks(settings: PromptSettings, depth: int, blocks: int) -> list[int]:
    """Return the blocks (1-based) whose query prompts are never used: their gradient is exactly zero.

    A query prompt affects only its block's output at the prompt positions. Under `replace`, block l + 1
    overwrites these for l < J. The last block's output at them is not used under either carry. A shared
    prompt is also key and value, and always used.
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
        q, k, v: learnable, float32 [J, n, W]; the same parameter in the structure `shared`. Text prompts of
            block 1 include the position embeddings of positions 1..n.
        start: float32 [n, W], input of block 1 at the prompt positions under carry `residual`; None under
            `replace`.
    """

    start: Tensor | None

    def __init__(
        self, settings: PromptSettings, depth: int, first_nW: Tensor, generator: torch.Generator
    ) -> None:
        """Args:
        settings: structure and carry.
        depth: J, at least 1.
        first_nW: initial prompt of block 1, float32 [n, W]. Under `replace`, q, k and v of block 1 start from
            it, and those of deeper blocks from normal(0, 0.02), equal for q, k and v: both structures start
            as the same function. Under `residual` it is `start`, and q, k and v start at zero.
        generator: source of the random values, on the CPU.
        """
        super().__init__()
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
        """Return P_q, P_k, P_v of every block, [J, 3, n, W]; unused prompts get a gradient of zeros."""
        return torch.stack([self.q, self.k, self.v], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by name; `shared` stores only `q`."""
        return {name: tensor.detach() for name, tensor in [*self.named_parameters(), *self.named_buffers()]}
