"""Run the frozen towers of open_clip with prompts, without computing what is not used.

Values and gradients equal the plain computation over all positions. Left out are repeated beginnings of
texts, padding, and rows that no later block uses.

Shapes: B images or texts, T tokens, S rows before the prompts or of a pack, K packs, n prompts, P prefix rows
(1 + n), W tower width, N heads, H head width, J prompt depth, D embedding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as run_checkpointed

from student_train.model.packing import PackedTexts, pack_texts
from student_train.model.prompts import Prompts
from student_train.model.text_plan import TextPlan, plan_texts
from student_train.model.vision_towers import vision_parts
from teacher_cache.compat.dynamo import compiled
from teacher_cache.errors import UsageError
from teacher_cache.memory import return_freed_memory
from teacher_cache.teacher.text_towers import TextParts

Blocks = list[tuple[Callable[..., Tensor], Tensor]]  # each with the prefix's keys and values

# --- one frozen block, split where prompts enter ---------------------------------------------------------


def _project(attn: Any, x_BTW: Tensor, part: str) -> Tensor:
    """Project normed rows with one product to [..., len(part), N, H]; `part` is 'q', 'kv' or 'qkv'.

    `attn` is torch's MultiheadAttention or open_clip's Attention: both stack the three projections in
    `in_proj_weight`.
    """
    begin, width = "qkv".index(part), x_BTW.shape[-1]
    rows = slice(begin * width, (begin + len(part)) * width)
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[rows]
    heads = F.linear(x_BTW, attn.in_proj_weight[rows], bias).unflatten(-1, (len(part), attn.num_heads, -1))
    return _norm_heads(attn, heads, part)


def _project_each(attn: Any, x_sBnW: Tensor, part: str) -> Tensor:
    """Project normed rows of each letter of `part` by its own projection, with one product.

    Args:
        x_sBnW: rows [len(part), B, n, W].

    Returns:
        [B, n, len(part), N, H].
    """
    begin, (letters, batch, _, width) = "qkv".index(part), x_sBnW.shape
    weights = attn.in_proj_weight.view(3, width, width)[begin : begin + letters].transpose(1, 2)
    rows = x_sBnW.flatten(1, 2)
    if attn.in_proj_bias is None:
        projected = rows @ weights
    else:
        projected = torch.baddbmm(attn.in_proj_bias.view(3, 1, width)[begin : begin + letters], rows, weights)
    heads = projected.view(letters, batch, -1, attn.num_heads, width // attn.num_heads).movedim(0, -3)
    return _norm_heads(attn, heads, part)


def _norm_heads(attn: Any, heads: Tensor, part: str) -> Tensor:
    """Normalise queries and keys, [..., len(part), N, H], as open_clip's own `Attention` does."""
    cosine = getattr(attn, "logit_scale", None) is not None
    norms = {name: getattr(attn, f"ln_{name}", None) for name in "qk"}
    if not cosine and all(norm is None or isinstance(norm, torch.nn.Identity) for norm in norms.values()):
        return heads
    pieces = []
    for name, x_BTNH in zip(part, heads.unbind(-3), strict=True):
        if cosine and name != "v":
            x_BTNH = F.normalize(x_BTNH, dim=-1)
        elif norm := norms.get(name):
            x_BTNH = norm(x_BTNH)
        if cosine and name == "q":
            x_BTNH = x_BTNH * attn.logit_scale.clamp(max=attn.logit_scale_max).exp()[:, 0]
        pieces.append(x_BTNH)
    return torch.stack(pieces, dim=-3)


def _attend(block: Any, q_BTNH: Tensor, kv_BTsNH: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention before its output projection, [B, T, W]; `mask` broadcasts to [B, N, T, T']."""
    attn = block.attn
    scale = 1.0 if getattr(attn, "logit_scale", None) is not None else None
    k_BTNH, v_BTNH = kv_BTsNH.unbind(2)
    if rotate := getattr(attn, "rotate", None):
        q_BTNH, k_BTNH = rotate(q_BTNH), rotate(k_BTNH)
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    out_BNTH = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if getattr(attn, "head_scale", None) is not None:
        out_BNTH = out_BNTH * attn.head_scale
    return out_BNTH.transpose(1, 2).flatten(2)


def _finish(block: Any, x_BTW: Tensor, attended_BTW: Tensor) -> Tensor:
    """Compute the rest of the block: Y = X + W_o · attention, X' = Y + MLP(LN2(Y))."""
    custom = hasattr(block, "ln_attn")
    out = block.attn.out_proj(block.attn.ln_inner(attended_BTW) if custom else attended_BTW)
    y_BTW = x_BTW + block.ls_1(block.ln_attn(out) if custom else out)
    result: Tensor = y_BTW + block.ls_2(block.mlp(block.ln_2(y_BTW)))
    return result


# --- a sequence with the prompts at its end --------------------------------------------------------------


class PromptedRows:
    """Rows of a tower between its blocks, `x`: S rows, and behind them the prompts.

    Block l, for s in q, k, v: X_s = LN1(Rep(X, P_s[l])), Y = Rep(X, P_q[l]) + W_o · Attention (RPP, arXiv
    2409.06166). Under carry `residual`, X_s = LN1(X + P_s[l]) at the prompts and Y's residual is X. Prompt
    rows exist only if a later block uses them. Keys and values that the batch shares exist once.
    """

    def __init__(self, x_BSW: Tensor, prompts: Prompts | None, blocks: int) -> None:
        self.x = x_BSW
        self.rows = x_BSW.shape[1]
        self.blocks = blocks
        self.length = prompts.length if prompts else 0
        self.depth = prompts.depth if prompts else 0
        self.own = prompts.by_block().unbind() if prompts else ()
        self.residual = prompts is not None and prompts.start is not None
        if prompts is not None and prompts.start is not None:
            start = prompts.start.to(x_BSW.dtype).expand(x_BSW.shape[0], -1, -1)
            self.x = torch.cat([x_BSW, start], dim=1)

    def rows_after(self, number: int) -> int:
        """Return how many output rows of block `number` (1-based) are used."""
        carried = number < self.blocks and (self.residual or number >= self.depth)
        return self.rows + self.length * carried

    def run(self, block: Any, number: int, rows: int, mask: Tensor | None, compile_blocks: bool) -> Tensor:
        """Run block `number` for the first `rows` rows; return keys and values of all, [B, T, 2, N, H]."""
        own = self.own[number - 1] if number <= self.depth else None
        prompted = compiled(_prompted_block) if compile_blocks else _prompted_block
        self.x, kv = prompted(block, self.x, own, mask, self.rows, rows, self.residual)
        return kv


def _prompted_block(
    block: Any,
    x_BTW: Tensor,
    own_3nW: Tensor | None,
    mask: Tensor | None,
    before: int,
    rows: int,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Run a block for its first `rows` rows; return them, and keys and values of all, [B, T, 2, N, H].

    With `rows` 0 only keys and values are computed.

    Args:
        x_BTW: rows before the prompts, and behind them carried prompts; under `replace` there may be none.
        own_3nW: the block's own prompts for q, k and v; None: it has none.
        mask: [rows, T]; None: all rows see all.
        before: number of rows before the prompts, S.
        residual: whether prompts are carried as `residual`.
    """
    tokens = x_BTW if own_3nW is None else x_BTW[:, :before]
    normed = block.ln_1(tokens)
    y = tokens[:, :rows]
    if rows == 0:
        kv = _project(block.attn, normed, "kv")
        q = kv[..., :1, :, :]  # not used
    elif rows < tokens.shape[1]:
        q, kv = _project(block.attn, normed[:, :rows], "q"), _project(block.attn, normed, "kv")
    else:
        q, kv = _project(block.attn, normed, "qkv").split([1, 2], dim=-3)
    q = q.squeeze(-3)
    if own_3nW is not None:
        carried = x_BTW[:, before:]  # empty under `replace`
        own = own_3nW[:, None]
        prompt_rows = carried + own if residual else own
        batch = x_BTW.shape[0]
        if rows > before:
            projected = _project_each(block.attn, block.ln_1(prompt_rows), "qkv")
            own_q, own_kv = projected.split([1, 2], dim=-3)
            q = torch.cat([q, own_q.squeeze(-3).expand(batch, -1, -1, -1)], dim=1)
            prompts = carried if residual else own_3nW[0].to(x_BTW.dtype).expand(batch, -1, -1)
            y = torch.cat([y, prompts], dim=1)
        else:
            own_kv = _project_each(block.attn, block.ln_1(prompt_rows.split([1, 2])[1]), "kv")
        kv = torch.cat([kv, own_kv.expand(batch, -1, -1, -1, -1)], dim=1)
    if rows == 0:
        return y, kv
    mask = None if mask is None else mask.to(q.dtype)
    return _finish(block, y, _attend(block, q, kv, mask)), kv


# --- vision ----------------------------------------------------------------------------------------------


def encode_image(
    visual: Any, prompts: Prompts | None, images: Tensor, *, compile_blocks: bool = False
) -> Tensor:
    """Return image features [B, D] of a frozen open_clip vision tower with prompts behind the patches.

    Pooling sees no prompts. In the last block only the rows that it reads are computed.

    Args:
        visual: the tower, in evaluation mode; `vision_towers/` says which.
        prompts: its prompts, or None.
        images: float [B, 3, height, width], normalised as the model expects.
        compile_blocks: run the blocks compiled; the caller has called `require_compiler`.

    Returns:
        float32 [B, D], not normalised.

    Raises:
        UnsupportedTowerError: another kind of tower.
    """
    tower = vision_parts(visual)
    x_BSW, blocks = tower.embed(images)
    stream = PromptedRows(x_BSW, prompts, len(blocks))
    for number, block in enumerate(blocks, start=1):
        rows = tower.pooled_rows if number == len(blocks) else stream.rows_after(number)
        stream.run(block, number, rows, None, compile_blocks)
    with torch.autocast(images.device.type, enabled=False):  # as for text
        return tower.pool(images, stream.x.float())


# --- text ------------------------------------------------------------------------------------------------


def text_prefix(
    parts: TextParts, prompts: Prompts | None, sot_1: Tensor, *, compile_blocks: bool = False
) -> list[Tensor]:
    """Return keys and values of SOT and prompts in every block, [1, P, 2, N, H]; all classes share them."""
    x_1SW = (parts.token_embedding(sot_1) + parts.positional_embedding[:1])[None]
    stream = PromptedRows(x_1SW, prompts, len(parts.blocks))
    size = 1 + stream.length
    causal = torch.full((size, size), float("-inf"), device=sot_1.device).triu(1)
    prefix = []
    for number, block in enumerate(parts.blocks, start=1):
        rows = stream.rows_after(number) if number < len(parts.blocks) else 0
        prefix.append(stream.run(block, number, rows, causal[:rows], compile_blocks))
    return prefix


def encode_text(
    parts: TextParts,
    prompts: Prompts | None,
    texts: Tensor | PackedTexts,
    plan: TextPlan | None = None,
    *,
    compile_blocks: bool = False,
) -> Tensor:
    """Return text features [B, D] of a frozen causal text tower with prompts behind SOT.

    SOT and the prompts run once, as a batch of one. Every distinct beginning of the texts runs once, up to
    the pooled token, and attends to that prefix and to the rows before it (`packing.py`). Position embeddings
    are those of the full sequence.

    Args:
        parts: the text tower.
        prompts: its prompts, or None.
        texts: int64 [B, T] from open_clip's tokenizer, without room for prompts; or the result of
            `pack_texts` for this number of prompts.
        plan: how many rows run together and what is kept for the backward pass; None: as `plan_texts`
            decides for the device.
        compile_blocks: as for `encode_image`.

    Returns:
        float32 [B, D], not normalised.

    Raises:
        UsageError: as `pack_texts`; or the texts were packed for another number of prompts.
    """
    length = prompts.length if prompts else 0
    if isinstance(texts, Tensor):
        texts = pack_texts(parts, texts, length)
    if texts.prompts != length:
        raise UsageError(f"the texts were packed for {texts.prompts} prompts, but the tower has {length}")
    texts = texts.to(parts.positional_embedding.device)
    if plan is None:
        plan = plan_texts(parts, texts)
    prefix = text_prefix(parts, prompts, texts.sot, compile_blocks=compile_blocks)
    own_block = compiled(_own_block) if compile_blocks else _own_block
    blocks: Blocks = [(partial(own_block, block), kv) for block, kv in zip(parts.blocks, prefix, strict=True)]
    features, begin = [], 0
    for number, chunk in enumerate(plan.slices(len(texts.ids))):
        x_KSW = parts.embed(texts.ids[chunk])
        x_KSW = x_KSW + parts.positional_embedding[texts.positions[chunk]]
        mask = _attention_mask(texts.sees[chunk], prefix[0])
        end = begin + sum(texts.texts_by_pack[chunk])
        slots_B = texts.slots[begin:end] - chunk.start * texts.ends.shape[1]
        segment = 0 if number >= plan.recomputed else plan.segment
        features.append(_own_rows(parts, blocks, x_KSW, mask, (texts.ends[chunk], slots_B), segment))
        if segment and x_KSW.device.type == "cpu":
            return_freed_memory()
            if features[-1].requires_grad:  # the chunk that follows this one has ended its backward pass
                features[-1].register_hook(lambda gradient: return_freed_memory())
        begin = end
    return torch.cat(features)[texts.places]


def _attention_mask(sees_KSS: Tensor, prefix_1PsNH: Tensor) -> Tensor:
    """Return what attention adds to its scores, [K, 1, S, P + S]: 0 where a row sees another, else -inf.

    All blocks use it. It has the type of queries, and rows whose length in memory is a multiple of 8, as
    CUDA's kernels need them; otherwise each call would convert and copy it.
    """
    packs, size, _ = sees_KSS.shape
    before = prefix_1PsNH.shape[1]
    stride = -(-(before + size) // 8) * 8
    mask = prefix_1PsNH.new_zeros(packs, 1, size, stride)[..., : before + size]
    mask[..., before:].masked_fill_(~sees_KSS[:, None], float("-inf"))
    return mask


def _own_rows(
    parts: TextParts,
    blocks: Blocks,
    x_KSW: Tensor,
    mask: Tensor,
    pooled: tuple[Tensor, Tensor],
    segment: int,
) -> Tensor:
    """Return features [B, D] of texts of some packs; `pooled` has `ends` and `slots` as `PackedTexts`."""
    x = x_KSW
    if segment and torch.is_grad_enabled():
        *firsts, last = range(0, len(blocks), segment)
        kept = x.new_empty(len(firsts), *x.shape)
        # `.data` gives views with version counters of their own, so that autograd allows the writes
        for begin, place in zip(firsts, kept.unbind(), strict=True):
            x = Preallocated.apply(_recomputed(blocks[begin : begin + segment], x, mask), place.data)
        x = _recomputed(blocks[last:], x, mask, pooled)
    else:
        x = _own_blocks(blocks, x, mask, pooled)
    # float32 also under autocast: rounding the features costs more than half precision in all blocks
    with torch.autocast(x.device.type, enabled=False):
        return parts.project(parts.ln_final(x.float()))


class Preallocated(torch.autograd.Function):
    """Copy rows into preallocated memory.

    Otherwise the rows that each block keeps, allocated between others that are freed, fragment the C
    library's heap to twice its size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.mark_dirty(place)
        return place.copy_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _recomputed(*arguments: Any) -> Tensor:
    """Run `_own_blocks`; the backward pass recomputes it from its inputs."""
    rows: Tensor = run_checkpointed(_own_blocks, *arguments, use_reentrant=False, preserve_rng_state=False)
    return rows


def _own_blocks(
    blocks: Blocks, x_KSW: Tensor, mask: Tensor, pooled: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Run blocks over the rows of packs; with `pooled`, the last one returns only these rows, [B, W]."""
    *firsts, (last, last_prefix) = blocks
    for block, prefix_kv in firsts:
        x_KSW = block(x_KSW, prefix_kv, mask, None)
    return last(x_KSW, last_prefix, mask, pooled)


def _own_block(
    block: Any, x: Tensor, prefix_1PsNH: Tensor, mask: Tensor, pooled: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Run a block over the rows of packs, [K, S, W]; with `pooled`, return only these rows, [B, W]."""
    normed = block.ln_1(x)
    if pooled is None:
        q, kv = _project(block.attn, normed, "qkv").split([1, 2], dim=-3)
    else:
        ends, slots_B = pooled
        kv = _project(block.attn, normed, "kv")
        # repeated ends have a gradient of zero, so the order of summation does not matter
        ends_KEW = ends[..., None].expand(-1, -1, x.shape[-1])
        x, normed = x.gather(1, ends_KEW), normed.gather(1, ends_KEW)
        q = _project(block.attn, normed, "q")
        mask = mask.gather(2, ends[:, None, :, None].expand(-1, 1, -1, mask.shape[-1]))
    kv = torch.cat([prefix_1PsNH.expand(len(kv), -1, -1, -1, -1), kv], dim=1)
    attended = _attend(block, q.squeeze(-3), kv, mask)
    if pooled is not None:
        x, attended = (rows.flatten(0, 1).index_select(0, slots_B) for rows in (x, attended))
    return _finish(block, x, attended)
