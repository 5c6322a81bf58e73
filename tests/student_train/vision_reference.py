"""Prompts in timm's vision towers, plainly: hooks on the untouched model, every row in every block.

Follows the paper (arXiv 2409.06166) and shares no code with `student_train`. Blocks and attentions are
timm's own. A hook puts prompts behind the rows before the first block, and each block replaces or keeps them.
A hook on each attention runs it on the rows for queries, for keys and for values, and attends with one of
each. Rotary position embeddings rotate prompts by zero.
"""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

Own = tuple[Tensor, Tensor, Tensor]


def attend_with_each(attn: Any, rows: Own, options: dict[str, Any]) -> Tensor:
    """The attention's output for other rows as queries, as keys and as values."""
    own, seen = F.scaled_dot_product_attention, []

    def record(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        seen.append((q, k, v))
        return own(q, k, v, **more)

    with patch.object(F, "scaled_dot_product_attention", record):
        for x in rows:
            attn.forward(x, **options)
    q, k, v = (found[place] for place, found in enumerate(seen))
    with patch.object(F, "scaled_dot_product_attention", lambda *_, **more: own(q, k, v, **more)):
        result: Tensor = attn.forward(rows[0], **options)
    return result


class Hooks:
    """Of one forward pass with prompts."""

    def __init__(self, blocks: Any, own: Own, start: Tensor | None) -> None:
        self.blocks, self.own, self.start = blocks, own, start
        self.length = own[0].shape[1]
        self.x = torch.empty(0)

    def before_block(self, number: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        (x,) = arguments
        if number == 0:
            first = torch.zeros_like(self.own[0][0]) if self.start is None else self.start
            x = torch.cat([x, first.expand(len(x), -1, -1)], dim=1)
        if self.start is None and number < len(self.own[0]):
            x = self.put(x, self.own[0][number])
        self.x = x
        if options.get("rope") is not None:
            sin, cos = options["rope"].chunk(2, dim=-1)
            none = sin[..., :1, :].expand(*sin.shape[:-2], self.length, -1)
            table = [
                torch.cat([sin, torch.zeros_like(none)], dim=-2),
                torch.cat([cos, torch.ones_like(none)], dim=-2),
            ]
            options = options | {"rope": torch.cat(table, dim=-1)}
        return (x,), options

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        y = x.clone()
        y[:, -self.length :] = prompt
        return y

    def attention(self, number: int, attn: Any, options: dict[str, Any]) -> Tensor | None:
        if number >= len(self.own[0]):
            return None
        block, x = self.blocks[number], self.x
        own = [prompts[number] for prompts in self.own]
        if self.start is not None:
            own = [x[:, -self.length :] + prompt for prompt in own]
        norms_behind = "Post" in type(block).__name__
        rows = [self.put(x, prompt) for prompt in own]
        q, k, v = rows if norms_behind else (block.norm1(each) for each in rows)
        return attend_with_each(attn, (q, k, v), options)


def image_features(model: Any, own: Own, start: Tensor | None, images: Tensor) -> Tensor:
    """[B, D] of images; `own` three of [J, n, W]."""
    blocks = model.visual.trunk.blocks
    hooks = Hooks(blocks, own, start)
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            handles = [
                block.register_forward_pre_hook(
                    lambda _, a, o, n=number: hooks.before_block(n, a, o), with_kwargs=True
                ),
                block.attn.register_forward_hook(
                    lambda attn, a, o, _, n=number: hooks.attention(n, attn, o), with_kwargs=True
                ),
            ]
            if number == len(blocks) - 1:
                handles.append(block.register_forward_hook(lambda *given: given[-1][:, : -hooks.length]))
            for handle in handles:
                stack.callback(handle.remove)
        features: Tensor = model.encode_image(images)
    return features
