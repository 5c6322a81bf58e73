"""Lay out texts for a text tower without a causal mask.

A position attends to all others, so texts share no rows. Every text runs with its prompts through all
blocks, at all positions of the context: the model was trained with padding that is attended to. Only padding
that a mask hides is left out. `full_tower.py` computes the rows.

Prompts stand behind the start-of-text token, or in front if the tokenizer has none. They take positions of
the context: the text has the positions behind them, and the last padding makes room.

Shapes: B texts, U distinct texts, T tokens, S rows of a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from student_train.model.text_frame import TextFrame
from teacher_cache.errors import UsageError
from teacher_cache.teacher.text_towers import TextParts


@dataclass(frozen=True)
class FullTexts:
    """Texts prepared for one text tower and one number of prompts. The pooled row comes first.

    The order of rows does not matter: their position embeddings are added before the first block.

    Attributes:
        ids: token ids, int64 [U, S].
        positions: positions in the full sequence with the prompts, int64 [U, S].
        hidden: rows that no row attends to, bool [U, S]; None if there are none.
        places: index of each text among the distinct ones, int64 [B].
        prompts: number of prompts that the positions leave room for.
    """

    ids: Tensor
    positions: Tensor
    hidden: Tensor | None
    places: Tensor
    prompts: int

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Any]) -> "FullTexts":
        """Return the texts with copies of their tensors."""
        return replace(self, **tensors)

    def to(self, device: torch.device) -> "FullTexts":
        """Return the texts with their tensors on a device."""
        return self.with_tensors({name: x.to(device) for name, x in self.tensors().items()})


def lay_out_texts(parts: TextParts, tokens_BT: Tensor, prompts: int, frame: TextFrame) -> FullTexts:
    """Lay out texts with room for `prompts` prompt positions; on the CPU.

    Args:
        parts: the text tower.
        tokens_BT: int64 [B, T] from the model's tokenizer, T its context length, without room for prompts.
        prompts: number of prompt positions.
        frame: of the tokenizer.

    Raises:
        UsageError: tokens of another length, a text that is too long for the prompts, or one without a token.
    """
    tokens_BT = tokens_BT.cpu().long()
    size = parts.context_length - prompts
    _check_texts(parts, tokens_BT, prompts, frame)
    tokens_US, places_B = tokens_BT[:, :size].unique(dim=0, return_inverse=True)
    pooled_U = parts.pool_positions(tokens_US)[:, None]
    rows_S = torch.arange(size)
    order_US = torch.where(rows_S == 0, pooled_U, rows_S - 1 + (rows_S > pooled_U))
    hidden_US = None
    if parts.pad_id is not None:
        is_hidden_US = tokens_US == parts.pad_id
        seen = int((~is_hidden_US * (rows_S + 1)).max())
        order_US = order_US[:, : seen + 1]  # the pooled row and what it sees
        hidden_US = is_hidden_US.gather(1, order_US)
    return FullTexts(
        ids=tokens_US.gather(1, order_US),
        positions=order_US + prompts * (order_US >= len(frame.start)),
        hidden=hidden_US,
        places=places_B,
        prompts=prompts,
    )


def _check_texts(parts: TextParts, tokens_BT: Tensor, prompts: int, frame: TextFrame) -> None:
    context = parts.context_length
    if tokens_BT.shape[1] != context:
        raise UsageError(
            f"expected tokens [B, {context}], found {list(tokens_BT.shape)}: this text tower attends to "
            "padding, and gives other features for another length"
        )
    for token in frame.start:
        for row in (tokens_BT[:, 0] != token).nonzero()[:1].flatten().tolist():
            raise UsageError(f"text row {row} does not begin with the start-of-text token {token}")
    lengths_B = frame.lengths(tokens_BT)
    for row in (lengths_B + prompts > context).nonzero()[: 1 if prompts else 0].flatten().tolist():
        raise UsageError(
            f"text row {row} is too long: {int(lengths_B[row])} tokens and {prompts} prompts, "
            f"but the text tower has {context} positions"
        )
    if parts.pad_id is not None:
        for row in (tokens_BT == parts.pad_id).all(dim=1).nonzero()[:1].flatten().tolist():
            raise UsageError(f"text row {row} has only padding")
