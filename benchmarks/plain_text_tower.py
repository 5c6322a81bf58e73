"""The yardstick of the text benchmarks: prompts over all positions of every class, without a handicap.

What a careful implementation without the shared prefix does: one norm and one fused projection for all rows,
`is_causal` attention without a mask in memory, prompts projected once and written over their positions. Plain
open_clip towers (no custom blocks), carry `replace`.

Shapes: C classes, T positions (77), n prompts, J prompt depth, W tower width, D embedding.
"""

from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as run_checkpointed

from student_train.model.prompts import INIT_STD, Prompts
from student_train.model.settings import PromptSettings
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.teacher.text_towers import TextParts, text_parts


def tower_with_prompts(
    model: str, length: int, depth: int, device: torch.device
) -> tuple[TextParts, Prompts]:
    """A frozen text tower and prompts, both random."""
    torch.manual_seed(0)
    parts = text_parts(
        open_clip.create_model(model, load_weights=False).eval().requires_grad_(False).to(device)
    )
    first_nW = INIT_STD * torch.randn(length, parts.positional_embedding.shape[1])
    settings = PromptSettings(towers="text", prompt_depth=depth, prompt_length=length)
    return parts, Prompts(settings, depth, first_nW, torch.Generator().manual_seed(0)).to(device)


def tokens_of_names(model: str, classes: str, count: int | None) -> Tensor:
    """Tokens 'NAME.' of a vocabulary, or of `count` random classes of it, int64 [C, T]."""
    names = load_vocabulary(classes).names
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    tokens: Tensor = open_clip.get_tokenizer(model)([f"{names[c]}." for c in order[:count]])
    return tokens


def with_placeholders(tokens_CT: Tensor, prompts: int) -> Tensor:
    """Room for the prompts behind the first token, int64 [C, T]."""
    places = tokens_CT.new_zeros(len(tokens_CT), prompts)
    return torch.cat([tokens_CT[:, :1], places, tokens_CT[:, 1:]], dim=1)[:, : tokens_CT.shape[1]]


def encode_plainly(parts: TextParts, prompts: Prompts, tokens_CT: Tensor, recompute: bool = False) -> Tensor:
    """Features [C, D] of tokens with placeholders. `recompute`: keep what goes into blocks, nothing else."""
    x_CTW = parts.token_embedding(tokens_CT) + parts.positional_embedding
    own_J3nW = prompts.by_block()
    for number, block in enumerate(parts.blocks):
        own_3nW = own_J3nW[number] if number < prompts.depth else None
        if recompute:
            x_CTW = run_checkpointed(
                _block, block, x_CTW, own_3nW, prompts.length, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x_CTW = _block(block, x_CTW, own_3nW, prompts.length)
    pooled_CW = x_CTW[torch.arange(len(x_CTW), device=x_CTW.device), parts.pool_positions(tokens_CT)]
    return parts.project(parts.ln_final(pooled_CW))


def _block(block: Any, x_CTW: Tensor, own_3nW: Tensor | None, length: int) -> Tensor:
    attn, at = block.attn, slice(1, 1 + length)
    if own_3nW is not None:  # the residual stream at a prompt position is its query prompt
        query_CnW = own_3nW[0].expand(len(x_CTW), -1, -1)
        x_CTW = torch.cat([x_CTW[:, :1], query_CnW, x_CTW[:, at.stop :]], dim=1)
    qkv_CT3W = F.linear(block.ln_1(x_CTW), attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3, -1))
    if own_3nW is not None:
        weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
        projected = [F.linear(p, w, b) for p, w, b in zip(block.ln_1(own_3nW), weights, biases, strict=True)]
        qkv_CT3W[:, at] = torch.stack(projected, dim=1)
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in qkv_CT3W.unbind(2))
    attended_CTW = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    y_CTW = x_CTW + attn.out_proj(attended_CTW)
    result: Tensor = y_CTW + block.mlp(block.ln_2(y_CTW))
    return result
