"""The frozen towers of open_clip, run with prompts and without computing what nothing reads.

Both results equal the plain computation over all positions in value and in gradient; what is left out is
what every class has in common (text), what no later row reads (both), and padding (text).

Shapes: B images or texts, T tokens, S rows before the prompts, n prompts, P prefix rows (1 + n), R rows of
several classes behind each other, G classes of equal length, W tower width, N heads, H head width, J prompt
depth, D embedding.
"""

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as run_checkpointed

from student_train.prompts import Prompts
from teacher_cache.errors import UsageError
from teacher_cache.openclip import TextParts

# Rows of class tokens that run through the text tower together.
CHUNK_ROWS = 2048
# With gradients, more rows than this run under activation checkpointing.
CHECKPOINT_ROWS = 8192


# --- one frozen block, taken apart where prompts enter it ------------------------------------------------


def _project(block: Any, x_BTW: Tensor, part: str) -> tuple[Tensor, ...]:
    """Query, key or value ('q', 'k', 'v' or neighbours such as 'kv') of normed rows, each [..., N, H].

    `block` is a ResidualAttentionBlock or a CustomResidualAttentionBlock: both keep the three projections
    under one another in `in_proj_weight`.
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
    """What open_clip's own `Attention` does to queries and keys before they meet."""
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
    """Attention before its output projection, [B, T, W]. `mask` (true = sees) broadcasts to [B, N, T, T']."""
    attn = block.attn
    scale = 1.0 if getattr(attn, "logit_scale", None) is not None else None
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    out_BNTH = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if getattr(attn, "head_scale", None) is not None:
        out_BNTH = out_BNTH * attn.head_scale
    return out_BNTH.transpose(1, 2).flatten(2)


def _finish(block: Any, x_BTW: Tensor, attended_BTW: Tensor) -> Tensor:
    """The rest of the block: Y = X + W_o · attention, X' = Y + MLP(LN2(Y))."""
    custom = hasattr(block, "ln_attn")
    out = block.attn.out_proj(block.attn.ln_inner(attended_BTW) if custom else attended_BTW)
    y_BTW = x_BTW + block.ls_1(block.ln_attn(out) if custom else out)
    result: Tensor = y_BTW + block.ls_2(block.mlp(block.ln_2(y_BTW)))
    return result


# --- a sequence with the prompts at its end --------------------------------------------------------------


class _PromptedRows:
    """The rows of one tower on their way through its blocks: S rows, behind them the prompts.

    Block l, for s in q, k, v: X_s = LN1(Rep(X, P_s[l])), Y = Rep(X, P_q[l]) + W_o · Attention (RPP, arXiv
    2409.06166); under carry `residual` X_s = LN1(X + P_s[l]) at the prompts and Y's residual is X. Prompt
    rows exist only where a later block reads them; their keys and values, only once where the batch shares
    them.
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
        """Rows that are read of what block `number` (1-based) writes, at most."""
        carried = number < self.blocks and (self.residual or number >= self.depth)
        return self.rows + self.length * carried

    def attention_inputs(self, block: Any, number: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residual [B, rows, W] and query [B, rows, N, H] of the first `rows` rows, key and value of all."""
        own = self.own[number - 1] if self.own is not None and number <= self.depth else None
        tokens = self.x if own is None else self.x[:, : self.rows]
        normed = block.ln_1(tokens)
        residual = tokens[:, :rows]
        (q,) = _project(block, normed[:, :rows], "q")
        k, v = _project(block, normed, "kv")
        if own is None:
            return residual, q, k, v
        carried = self.x[:, self.rows :]  # without rows under `replace`
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


def encode_image(visual: VisionTransformer, prompts: Prompts | None, images: Tensor) -> Tensor:
    """Image features [B, D] of a frozen open_clip vision tower with prompts behind the patches.

    Args:
        visual: the tower, in evaluation mode.
        prompts: its prompts, or None for none.
        images: [B, 3, height, width], normalised as the model wants them.
    """
    blocks = visual.transformer.resblocks
    stream = _PromptedRows(visual._embeds(images), prompts, len(blocks))
    class_token_alone = visual.attn_pool is None and visual.pool_type == "tok"
    for number, block in enumerate(blocks, start=1):
        rows = 1 if class_token_alone and number == len(blocks) else stream.rows_after(number)
        residual, q, k, v = stream.attention_inputs(block, number, rows)
        stream.x = _finish(block, residual, _attend(block, q, k, v))
    pooled, _ = visual._pool(stream.x)
    features: Tensor = pooled if visual.proj is None else pooled @ visual.proj
    return features


# --- text ------------------------------------------------------------------------------------------------


def text_prefix(parts: TextParts, prompts: Prompts | None, sot_1: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Key and value of SOT and prompts in every block, each [1, P, N, H]: the same for every class."""
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
    parts: TextParts, prompts: Prompts | None, tokens_BT: Tensor, checkpoint: bool | None = None
) -> Tensor:
    """Text features [B, D] of a frozen causal text tower with prompts behind SOT.

    SOT and the prompts run once, as a batch of one. Of each text only the tokens behind SOT up to the pooled
    one run, attending to that prefix and to one another; rows of all texts lie behind one another, and only
    attention looks at texts, in groups of equal length. Position embeddings are those of the full sequence.

    Args:
        parts: the text tower.
        prompts: its prompts, or None for none.
        tokens_BT: int64 [B, T], as open_clip's tokenizer gives them: without room for prompts.
        checkpoint: recompute activations in the backward pass; None = where there are many rows.

    Raises:
        UsageError: a text has no end-of-text token, is too long for the prompts, or does not begin as the
            others do.
    """
    device = parts.positional_embedding.device
    tokens_BT = tokens_BT.cpu()  # the grouping is arithmetic on lengths: one transfer, no synchronisation
    lengths_B = parts.pool_positions(tokens_BT)
    first = 1 + (prompts.length if prompts else 0)
    _check_texts(tokens_BT, lengths_B, first, parts)
    prefix = text_prefix(parts, prompts, tokens_BT[0, :1].to(device))
    order_B = lengths_B.argsort(stable=True)
    if checkpoint is None:
        checkpoint = int(lengths_B.sum()) > CHECKPOINT_ROWS
    features = []
    for chunk in _chunks(order_B, lengths_B):
        groups = [(int(g), int(t)) for t, g in zip(*lengths_B[chunk].unique(return_counts=True), strict=True)]
        texts = zip(chunk.split([g for g, _ in groups]), groups, strict=True)
        ids_R = torch.cat([tokens_BT[members, 1 : 1 + t].flatten() for members, (_, t) in texts]).to(device)
        positions_R = torch.cat([torch.arange(first, first + t).repeat(g) for g, t in groups]).to(device)
        if checkpoint and torch.is_grad_enabled():
            features.append(
                run_checkpointed(_own_tokens, parts, prefix, ids_R, positions_R, groups, use_reentrant=False)
            )
        else:
            features.append(_own_tokens(parts, prefix, ids_R, positions_R, groups))
    return torch.cat(features)[order_B.argsort().to(device)]


def _check_texts(tokens_BT: Tensor, lengths_B: Tensor, first: int, parts: TextParts) -> None:
    context = parts.positional_embedding.shape[0]
    for row in (lengths_B < 1).nonzero()[:1].flatten().tolist():
        raise UsageError(f"text row {row} has no end-of-text token behind its first token")
    for row in (lengths_B + first > context).nonzero()[:1].flatten().tolist():
        raise UsageError(
            f"text row {row} is too long: {int(lengths_B[row]) + 1} tokens and {first - 1} prompts, "
            f"but the text tower has {context} positions"
        )
    for row in (tokens_BT[:, 0] != tokens_BT[0, 0]).nonzero()[:1].flatten().tolist():
        raise UsageError(f"text row {row} does not begin with the same start-of-text token as row 0")


def _chunks(order_B: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
    """The texts from short to long, in pieces of about CHUNK_ROWS rows."""
    number_B = (lengths_B[order_B].cumsum(0) - 1) // CHUNK_ROWS
    return torch.split(order_B, number_B.unique_consecutive(return_counts=True)[1].tolist())


def _own_tokens(
    parts: TextParts,
    prefix: list[tuple[Tensor, Tensor]],
    ids_R: Tensor,
    positions_R: Tensor,
    groups: list[tuple[int, int]],
) -> Tensor:
    """Features of some texts, [sum of G, D]. `groups`: (G, T) in the order of the rows, R = sum of G · T."""
    x = parts.token_embedding(ids_R) + parts.positional_embedding[positions_R]
    ends = torch.tensor([t for g, t in groups for _ in range(g)]).cumsum(0).to(x.device) - 1
    block: Any
    for number, (block, (prefix_k, prefix_v)) in enumerate(zip(parts.blocks, prefix, strict=True), start=1):
        normed = block.ln_1(x)
        k, v = _project(block, normed, "kv")
        if number == len(prefix):  # behind the last block only the pooled rows are read
            x, normed = x[ends], normed[ends]
        (q,) = _project(block, normed, "q")
        attended = [
            _attend(
                block,
                q_GTNH,
                torch.cat([prefix_k.expand(len(k_GTNH), -1, -1, -1), k_GTNH], dim=1),
                torch.cat([prefix_v.expand(len(v_GTNH), -1, -1, -1), v_GTNH], dim=1),
                _sees(q_GTNH.shape[1], prefix_k.shape[1], x.device),
            ).flatten(0, 1)
            for q_GTNH, k_GTNH, v_GTNH in zip(*(_by_text(rows, groups) for rows in (q, k, v)), strict=True)
        ]
        x = _finish(block, x, torch.cat(attended))
    return parts.project(parts.ln_final(x))


def _by_text(x_RNH: Tensor, groups: list[tuple[int, int]]) -> list[Tensor]:
    """Rows -> [G, T, N, H] for each group; T is 1 where each text has its pooled row alone."""
    per_text = [t if len(x_RNH) == sum(g * t for g, t in groups) else 1 for _, t in groups]
    split = torch.split(x_RNH, [g * t for (g, _), t in zip(groups, per_text, strict=True)])
    return [rows.unflatten(0, (-1, t)) for rows, t in zip(split, per_text, strict=True)]


def _sees(queries: int, prefix: int, device: torch.device) -> Tensor | None:
    """Mask [T, P + T] of a text's rows: the whole prefix and the rows up to itself; None = a last row."""
    if queries == 1:
        return None
    return torch.ones(queries, prefix + queries, dtype=torch.bool, device=device).tril(prefix)
