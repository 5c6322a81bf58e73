"""Text prompts by hooks on an untouched open_clip model: every position of every text, in every block.

The model computes its own masks, pooling and projection. Shares no code with `student_train`.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

Own = tuple[Tensor, Tensor, Tensor]
PLACEHOLDER = 7  # a token at the prompts' positions; its embedding is replaced


def text_features(model: Any, own: Own, start: Tensor | None, tokens: Tensor, first: int) -> Tensor:
    """Return features [B, D] of texts with prompts.

    Args:
        model: from open_clip.
        own: prompts for query, key and value, [J, n, W] each.
        start: input of block 1 at the prompts under carry `residual`, [n, W]; None under `replace`.
        tokens: [B, T] without the prompts; their last n positions are padding.
        first: position of the first prompt.
    """
    n, width = own[0].shape[1], tokens.shape[1]
    placeholders = tokens.new_full((len(tokens), n), PLACEHOLDER)
    tokens = torch.cat([tokens[:, :first], placeholders, tokens[:, first:]], dim=1)[:, :width]
    at = slice(first, first + n)
    tower = model.text if hasattr(model, "text") else model

    def with_rows(x: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([x[:, : at.start], rows.expand(len(x), -1, -1), x[:, at.stop :]], dim=1)

    with ExitStack() as hooks:
        for number, block in enumerate(tower.transformer.resblocks):
            stream: dict[str, Tensor] = {}
            has_own = number < len(own[0])

            def enter(
                _: Any, args: Any, kwargs: Any, number: int = number, stream: Any = stream, has: Any = has_own
            ) -> Any:
                x = args[0]
                if start is None and has:
                    x = with_rows(x, own[0][number])
                elif start is not None and number == 0:
                    x = with_rows(x, start)
                stream["x"] = x
                return (x, *args[1:]), kwargs

            def attend(
                _: Any, args: Any, kwargs: Any, number: int = number, stream: Any = stream, block: Any = block
            ) -> Any:
                before = 0 if start is None else stream["x"][:, at]
                parts = [with_rows(x, block.ln_1(before + own[s][number])) for s, x in enumerate(args[:3])]
                return (*parts, *args[3:]), kwargs

            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if has_own:
                hooks.callback(block.attn.register_forward_pre_hook(attend, with_kwargs=True).remove)
        features: Tensor = model.encode_text(tokens, normalize=False)
    return features
