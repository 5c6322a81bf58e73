"""The prompted towers written plainly: every position of every text and image, in every block.

Follows design and paper (arXiv 2409.06166) line by line and shares no code with `student_train`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Own = tuple[Tensor, Tensor, Tensor]


def norm(layer: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def attention(attn: Any, x_q: Tensor, x_k: Tensor, x_v: Tensor, mask: Tensor | None) -> Tensor:
    width = x_q.shape[-1]
    heads = []
    for i, x in enumerate((x_q, x_k, x_v)):
        weight = attn.in_proj_weight[i * width : (i + 1) * width]
        bias = attn.in_proj_bias[i * width : (i + 1) * width]
        y = x @ weight.T + bias
        heads.append(y.reshape(*y.shape[:2], attn.num_heads, -1).permute(0, 2, 1, 3))
    q, k, v = heads
    scale: Any = q.shape[-1] ** -0.5
    if type(attn).__name__ == "Attention":  # of the CustomResidualAttentionBlock
        if attn.logit_scale is not None:
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            scale = attn.logit_scale.exp().clamp(max=100)
        if type(attn.ln_q).__name__ != "Identity":
            q, k = norm(attn.ln_q, q), norm(attn.ln_k, k)
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    out = scores.softmax(dim=-1) @ v
    if getattr(attn, "head_scale", None) is not None:
        out = out * attn.head_scale
    out = out.permute(0, 2, 1, 3).reshape(x_q.shape)
    if type(getattr(attn, "ln_inner", None)).__name__ == "LayerNorm":
        out = norm(attn.ln_inner, out)
    return out @ attn.out_proj.weight.T + attn.out_proj.bias


def block_forward(
    block: Any, x: Tensor, own: Own | None, at: slice, carry: str, mask: Tensor | None
) -> Tensor:
    """One block; `own` are its prompts [n, W] for query, key and value, which stand at positions `at`."""

    def rep(prompt: Tensor) -> Tensor:
        y = x.clone()
        y[:, at] = prompt if carry == "replace" else x[:, at] + prompt
        return y

    x_q, x_k, x_v = (rep(prompt) for prompt in own) if own else (x, x, x)
    stream = x_q if own and carry == "replace" else x
    out = attention(block.attn, norm(block.ln_1, x_q), norm(block.ln_1, x_k), norm(block.ln_1, x_v), mask)
    if type(getattr(block, "ln_attn", None)).__name__ == "LayerNorm":
        out = norm(block.ln_attn, out)
    y = stream + block.ls_1(out)
    return y + block.ls_2(block.mlp(norm(block.ln_2, y)))


def run_blocks(
    blocks: Any, x: Tensor, own: Own, start: Tensor | None, at: slice, mask: Tensor | None
) -> Tensor:
    if start is not None:
        x = x.clone()
        x[:, at] = start
    for i, block in enumerate(blocks):
        prompts = (own[0][i], own[1][i], own[2][i]) if i < len(own[0]) else None
        x = block_forward(block, x, prompts, at, "replace" if start is None else "residual", mask)
    return x


def text_features(model: Any, own: Own, start: Tensor | None, tokens: Tensor) -> Tensor:
    """[B, D] of full sequences SOT, prompts, name, EOT, padding; `own` three of [J, n, W]."""
    tower = model.text if hasattr(model, "text") else model
    n, context = own[0].shape[1], tokens.shape[1]
    placeholders = tokens.new_zeros(len(tokens), n)
    tokens = torch.cat([tokens[:, :1], placeholders, tokens[:, 1:]], dim=1)[:, :context]
    x = tower.token_embedding.weight[tokens] + tower.positional_embedding
    mask = torch.full((context, context), float("-inf")).triu(1)
    x = run_blocks(tower.transformer.resblocks, x, own, start, slice(1, 1 + n), mask)
    x = norm(tower.ln_final, x)
    pooled = x[torch.arange(len(x)), (tokens == 49407).int().argmax(dim=1)]
    projection = tower.text_projection
    if projection is None:
        return pooled
    if isinstance(projection, torch.nn.Linear):
        return pooled @ projection.weight.T + projection.bias
    return pooled @ projection


def image_features(model: Any, own: Own, start: Tensor | None, images: Tensor) -> Tensor:
    """[B, D] of class token, patches, prompts; `own` three of [J, n, W]."""
    visual = model.visual
    patches = F.conv2d(images, visual.conv1.weight, stride=visual.conv1.stride).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
    x = visual.ln_pre(x + visual.positional_embedding)
    rows, n = x.shape[1], own[0].shape[1]
    x = torch.cat([x, x.new_zeros(len(x), n, x.shape[2])], dim=1)
    x = run_blocks(visual.transformer.resblocks, x, own, start, slice(rows, rows + n), None)[:, :rows]
    if visual.attn_pool is not None:
        pooled = norm(visual.ln_post, visual.attn_pool(x))[:, 0]
    elif visual.final_ln_after_pool:
        pooled = norm(visual.ln_post, x[:, 1:].mean(dim=1) if visual.pool_type == "avg" else x[:, 0])
    else:
        x = norm(visual.ln_post, x)
        pooled = x[:, 1:].mean(dim=1) if visual.pool_type == "avg" else x[:, 0]
    return pooled @ visual.proj
