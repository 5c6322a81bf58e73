"""Run the frozen towers of open_clip with prompts, without computing what is not used.

Values and gradients equal the plain computation over all positions. Left out are repeated beginnings of
texts, padding, and rows that no later block uses.

Shapes: B images or texts, T tokens, S rows before the prompts or of a pack, K packs, n prompts, P prefix rows
(1 + n), W tower width, N heads, H head width, J prompt depth, D embedding.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as run_checkpointed

from student_train.model.packing import PackedTexts, pack_texts
from student_train.model.prompts import Prompts
from teacher_cache.compat.open_clip import embedded_rows, pooled_features
from teacher_cache.errors import UsageError
from teacher_cache.teacher.text_towers import TextParts

# Rows of class tokens that run through the text tower at a time (`benchmarks/full_softmax.py`).
CHUNK_ROWS = 4096
# Bytes of the text tower's activations kept for the backward pass; the rest is recomputed.
KEPT_BYTES = 2 * 2**30
# Activations of a block per row, in tower widths: inputs of norms, q, k, v, attention, hidden row of the MLP.
WIDTHS_PER_BLOCK = 12


# --- one frozen block, split where prompts enter ---------------------------------------------------------


def _project(block: Any, x_BTW: Tensor, part: str) -> tuple[Tensor, ...]:
    """Project normed rows to query, key or value, each [..., N, H]; `part` is 'q', 'kv' or 'qkv' for example.

    `block` is a ResidualAttentionBlock or a CustomResidualAttentionBlock: both stack the three projections in
    `in_proj_weight`.
    """
    attn, width = block.attn, x_BTW.shape[-1]
    begin = "qkv".index(part) * width
    rows = slice(begin, begin + len(part) * width)
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[rows]
    projected = F.linear(x_BTW, attn.in_proj_weight[rows], bias).unflatten(
        -1, (-1, attn.num_heads, width // attn.num_heads)
    )
    return tuple(
        _norm_heads(attn, heads, name) for heads, name in zip(projected.unbind(-3), part, strict=True)
    )


def _norm_heads(attn: Any, x_BTNH: Tensor, name: str) -> Tensor:
    """Normalise queries and keys as open_clip's own `Attention` does."""
    if name == "v":
        return x_BTNH
    if getattr(attn, "logit_scale", None) is not None:  # scaled cosine attention
        x_BTNH = F.normalize(x_BTNH, dim=-1)
        return (
            x_BTNH * attn.logit_scale.clamp(max=attn.logit_scale_max).exp()[:, 0] if name == "q" else x_BTNH
        )
    normed: Tensor = getattr(attn, f"ln_{name}", torch.nn.Identity())(x_BTNH)
    return normed


def _attend(block: Any, q_BTNH: Tensor, k_BTNH: Tensor, v_BTNH: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention before its output projection, [B, T, W]; `mask` broadcasts to [B, N, T, T']."""
    attn = block.attn
    scale = 1.0 if getattr(attn, "logit_scale", None) is not None else None
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


class _PromptedRows:
    """Rows of a tower between its blocks: S rows, and behind them the prompts.

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
        self.own = prompts.by_block() if prompts else None
        self.residual = prompts is not None and prompts.start is not None
        if prompts is not None and prompts.start is not None:
            self.x = torch.cat([x_BSW, self._shared(prompts.start)], dim=1)

    def _shared(self, prompt_nW: Tensor) -> Tensor:
        return prompt_nW.to(self.x.dtype).expand(self.x.shape[0], -1, -1)

    def rows_after(self, number: int) -> int:
        """Return how many output rows of block `number` (1-based) are used."""
        carried = number < self.blocks and (self.residual or number >= self.depth)
        return self.rows + self.length * carried

    def attention_inputs(self, block: Any, number: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return residual [B, rows, W] and query [B, rows, N, H] of the first rows, key and value of all."""
        own = self.own[number - 1] if self.own is not None and number <= self.depth else None
        tokens = self.x if own is None else self.x[:, : self.rows]
        normed = block.ln_1(tokens)
        residual = tokens[:, :rows]
        (q,) = _project(block, normed[:, :rows], "q")
        k, v = _project(block, normed, "kv")
        if own is None:
            return residual, q, k, v
        carried = self.x[:, self.rows :]  # empty under `replace`
        prompt_rows = carried + own[:, None] if self.residual else own[:, None]  # [3, B or 1, n, W]
        (prompt_k,), (prompt_v,) = (_project(block, block.ln_1(prompt_rows["qkv".index(s)]), s) for s in "kv")
        batch = self.x.shape[0]
        k = torch.cat([k, prompt_k.expand(batch, -1, -1, -1)], dim=1)
        v = torch.cat([v, prompt_v.expand(batch, -1, -1, -1)], dim=1)
        if rows > self.rows:
            (prompt_q,) = _project(block, block.ln_1(prompt_rows[0]), "q")
            q = torch.cat([q, prompt_q.expand(batch, -1, -1, -1)], dim=1)
            residual = torch.cat([residual, carried if self.residual else self._shared(own[0])], dim=1)
        return residual, q, k, v


# --- vision ----------------------------------------------------------------------------------------------


def encode_image(visual: Any, prompts: Prompts | None, images: Tensor) -> Tensor:
    """Return image features [B, D] of a frozen open_clip vision tower with prompts behind the patches.

    Args:
        visual: the tower, in evaluation mode.
        prompts: its prompts, or None.
        images: float [B, 3, height, width], normalised as the model expects.

    Returns:
        float32 [B, D], not normalised.
    """
    blocks = visual.transformer.resblocks
    stream = _PromptedRows(embedded_rows(visual, images), prompts, len(blocks))
    only_class_token = visual.attn_pool is None and visual.pool_type == "tok"
    for number, block in enumerate(blocks, start=1):
        rows = 1 if only_class_token and number == len(blocks) else stream.rows_after(number)
        residual, q, k, v = stream.attention_inputs(block, number, rows)
        stream.x = _finish(block, residual, _attend(block, q, k, v))
    with torch.autocast(images.device.type, enabled=False):  # as for text
        return pooled_features(visual, images, stream.x.float())


# --- text ------------------------------------------------------------------------------------------------


def text_prefix(parts: TextParts, prompts: Prompts | None, sot_1: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return key and value of SOT and prompts in every block, each [1, P, N, H]; all classes share them."""
    x_1SW = (parts.token_embedding(sot_1) + parts.positional_embedding[:1])[None]
    stream = _PromptedRows(x_1SW, prompts, len(parts.blocks))
    causal = torch.ones(1 + stream.length, 1 + stream.length, dtype=torch.bool, device=sot_1.device).tril()
    prefix = []
    for number, block in enumerate(parts.blocks, start=1):
        rows = stream.rows_after(number)
        residual, q, k, v = stream.attention_inputs(block, number, rows)
        prefix.append((k, v))
        if number < len(parts.blocks):
            stream.x = _finish(block, residual, _attend(block, q, k, v, causal[:rows, : k.shape[1]]))
    return prefix


def encode_text(
    parts: TextParts, prompts: Prompts | None, texts: Tensor | PackedTexts, segment: int | None = None
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
        segment: number of blocks whose inner activations are recomputed together in the backward pass; 0
            keeps all, None decides by KEPT_BYTES.

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
    prefix = text_prefix(parts, prompts, texts.sot)
    packs, size = texts.ids.shape
    if segment is None:
        segment = _segment(packs * size, len(parts.blocks), parts.positional_embedding.shape[1])
    features, begin = [], 0
    for chunk in _chunks(packs, size):
        x_KSW = parts.token_embedding(texts.ids[chunk])
        x_KSW = x_KSW + parts.positional_embedding[texts.positions[chunk]]
        sees = F.pad(texts.sees[chunk], (prefix[0][0].shape[1], 0), value=True)
        end = begin + sum(texts.texts_by_pack[chunk])
        slots_B = texts.slots[begin:end] - chunk.start * texts.ends.shape[1]
        features.append(_own_rows(parts, prefix, x_KSW, sees, texts.ends[chunk], slots_B, segment))
        begin = end
    return torch.cat(features)[texts.places]


def _segment(rows: int, blocks: int, width: int) -> int:
    """Return how many blocks are recomputed together, so that KEPT_BYTES suffice; 0 keeps all activations."""
    inputs_bytes = 4 * rows * width * blocks  # inputs of all blocks, float32
    if inputs_bytes * WIDTHS_PER_BLOCK <= KEPT_BYTES:
        return 0
    return min(blocks, -(-inputs_bytes // KEPT_BYTES))


def _chunks(packs: int, size: int) -> list[slice]:
    """Split the packs into chunks of about equal size with at most CHUNK_ROWS rows."""
    pieces = min(packs, -(-packs * size // CHUNK_ROWS))
    bounds = [piece * packs // pieces for piece in range(pieces + 1)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def _own_rows(
    parts: TextParts,
    prefix: list[tuple[Tensor, Tensor]],
    x_KSW: Tensor,
    sees_KST: Tensor,
    ends_KE: Tensor,
    slots_B: Tensor,
    segment: int,
) -> Tensor:
    """Return features [B, D] of texts of some packs; T = P + S, `ends_KE`, `slots_B` as in `PackedTexts`."""
    blocks = list(zip(parts.blocks, prefix, strict=True))
    x = x_KSW
    pooled = (ends_KE, slots_B)
    if segment and torch.is_grad_enabled():
        *firsts, last = range(0, len(blocks), segment)
        kept = x.new_empty(len(firsts), *x.shape)
        # `.data` gives views with version counters of their own, so that autograd allows the writes
        for begin, place in zip(firsts, kept.unbind(), strict=True):
            x = _Preallocated.apply(_recomputed(blocks[begin : begin + segment], x, sees_KST), place.data)
        x = _recomputed(blocks[last:], x, sees_KST, pooled)
    else:
        x = _own_blocks(blocks, x, sees_KST, pooled)
    # float32 also under autocast: rounding the features costs more than half precision in all blocks
    with torch.autocast(x.device.type, enabled=False):
        return parts.project(parts.ln_final(x.float()))


class _Preallocated(torch.autograd.Function):
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
    blocks: list[tuple[Any, tuple[Tensor, Tensor]]],
    x_KSW: Tensor,
    sees_KST: Tensor,
    pooled: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Run blocks over the rows of packs; with `pooled`, the last one returns only these rows, [B, W]."""
    x = x_KSW
    for number, (block, (prefix_k, prefix_v)) in enumerate(blocks, start=1):
        normed = block.ln_1(x)
        ends = pooled[0] if pooled and number == len(blocks) else None
        if ends is None:
            q, k, v = _project(block, normed, "qkv")
        else:
            k, v = _project(block, normed, "kv")
            # repeated ends have a gradient of zero, so the order of summation does not matter
            x, normed = (rows.take_along_dim(ends[..., None], 1) for rows in (x, normed))
            (q,) = _project(block, normed, "q")
            sees_KST = sees_KST.take_along_dim(ends[..., None], 1)
        k = torch.cat([prefix_k.expand(len(k), -1, -1, -1), k], dim=1)
        v = torch.cat([prefix_v.expand(len(v), -1, -1, -1), v], dim=1)
        attended = _attend(block, q, k, v, sees_KST[:, None])
        if pooled and ends is not None:
            x, attended = (rows.flatten(0, 1)[pooled[1]] for rows in (x, attended))
        x = _finish(block, x, attended)
    return x
