"""Run a frozen text tower without a causal mask, with prompts in every text.

Values and gradients equal the plain computation. Prompt rows exist only where a later block uses them, and
the last block computes the pooled row only, as in the vision tower.

Shapes: U distinct texts, S rows of a text besides the prompts, n prompts, W tower width, D embedding.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as run_checkpointed

from student_train.model.full_texts import FullTexts
from student_train.model.prompts import Prompts
from student_train.model.text_plan import TextPlan, plan_texts
from student_train.model.towers import Preallocated, PromptedRows
from teacher_cache.errors import UsageError
from teacher_cache.teacher.text_towers import TextParts


def encode_full_text(
    parts: TextParts,
    prompts: Prompts | None,
    texts: FullTexts,
    plan: TextPlan | None = None,
    *,
    compile_blocks: bool = False,
) -> Tensor:
    """Return text features [B, D] of a frozen text tower in which every position attends to all.

    Args:
        parts: the text tower.
        prompts: its prompts, or None.
        texts: from `lay_out_texts`, for this number of prompts.
        plan: how many rows run together and what is kept for the backward pass; None: as `plan_texts`
            decides for the device.
        compile_blocks: run the blocks compiled; the caller has called `require_compiler`.

    Returns:
        float32 [B, D], not normalised.

    Raises:
        UsageError: the texts were laid out for another number of prompts.
    """
    length = prompts.length if prompts else 0
    if texts.prompts != length:
        raise UsageError(f"the texts were packed for {texts.prompts} prompts, but the tower has {length}")
    texts = texts.to(parts.positional_embedding.device)
    if plan is None:
        plan = plan_texts(parts, texts, prompts=prompts)
    features = []
    for number, chunk in enumerate(plan.slices(len(texts.ids))):
        x_USW = parts.embed(texts.ids[chunk]) + parts.positional_embedding[texts.positions[chunk]]
        mask = None if texts.hidden is None else _attention_mask(texts.hidden[chunk], x_USW, length)
        tower = _TowerRows(parts, prompts, x_USW, mask, compile_blocks)
        pooled_UW = tower.pooled(0 if number >= plan.recomputed else plan.segment)
        # float32 also under autocast, as for causal towers
        with torch.autocast(x_USW.device.type, enabled=False):
            features.append(parts.project(parts.ln_final(pooled_UW.float())))
    return torch.cat(features)[texts.places]


def _attention_mask(hidden_US: Tensor, x_USW: Tensor, prompts: int) -> Tensor:
    """Return what attention adds to its scores, [U, 1, 1, S + n]: -inf for hidden rows, 0 for others."""
    mask = x_USW.new_zeros(len(hidden_US), 1, 1, hidden_US.shape[1] + prompts)
    mask[:, 0, 0, : hidden_US.shape[1]].masked_fill_(hidden_US, float("-inf"))
    return mask


class _TowerRows:
    """Rows of some texts on their way through the blocks."""

    def __init__(
        self,
        parts: TextParts,
        prompts: Prompts | None,
        x_USW: Tensor,
        mask: Tensor | None,
        compile_blocks: bool,
    ) -> None:
        self._blocks, self._mask, self._compile_blocks = parts.blocks, mask, compile_blocks
        self._rows = PromptedRows(x_USW, prompts, len(parts.blocks))

    def pooled(self, segment: int) -> Tensor:
        """Return the pooled row of each text, [U, W].

        Args:
            segment: number of blocks that the backward pass computes again together; 0: everything is kept.
        """
        blocks = len(self._blocks)
        if not segment or not torch.is_grad_enabled():
            return self._run(self._rows.x, 0, blocks)[:, 0]
        *firsts, last = range(0, blocks, segment)
        x = self._rows.x
        kept = [x.new_empty(len(x), self._rows.rows_after(begin + segment), x.shape[2]) for begin in firsts]
        for begin, place in zip(firsts, kept, strict=True):
            # `.data` gives views with version counters of their own, so that autograd allows the writes
            x = Preallocated.apply(self._run_again(x, begin, begin + segment), place.data)
        return self._run_again(x, last, blocks)[:, 0]

    def _run_again(self, x: Tensor, begin: int, end: int) -> Tensor:
        rows: Tensor = run_checkpointed(
            self._run, x, begin, end, use_reentrant=False, preserve_rng_state=False
        )
        return rows

    def _run(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Run blocks `begin` to `end` - 1 (from 0) over rows [U, S or S + n, W]."""
        rows = self._rows
        rows.x = x
        for number in range(begin + 1, end + 1):
            block = self._blocks[number - 1]
            used = 1 if number == len(self._blocks) else rows.rows_after(number)
            rows.run(block, number, used, self._mask, self._compile_blocks)
        return rows.x
