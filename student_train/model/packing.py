"""Lay out texts for the text tower: every distinct beginning once, in packs of equal size.

Attention is causal: a token's row depends only on the tokens before it. Texts with the same beginning share
its rows ('grand piano.' and 'grand slam.' share 'grand'). A vocabulary is therefore a forest, and a row
attends to the prefix, its ancestors and itself. Trees are placed into packs of equal size, so that the tower
runs dense tensors with one attention mask per pack. `towers.py` computes the rows.

Shapes: B texts, T tokens, K packs, S rows of a pack, R rows in use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teacher_cache.errors import UsageError
from teacher_cache.teacher.text_towers import TextParts

# Rows of a pack; more if the longest text is longer.
PACK_ROWS = 32


@dataclass(frozen=True)
class PackedTexts:
    """Texts prepared for one text tower and one number of prompts. Row s of pack k has the index k · S + s.

    Attributes:
        sot: start-of-text token of every text, int64 [1].
        ids: token ids, int64 [K, S]; 0 in unused rows.
        positions: positions in the full sequence with the prompts, int64 [K, S].
        sees: rows of its pack that a row attends to besides the prefix, bool [K, S, S]: the rows of its text
            up to itself.
        ends: rows of a pack from which texts are pooled, int64 [K, E]; padded with the last one.
        slots: entries k · E + e of `ends` that belong to a text, ascending, int64 [B].
        places: index of each text in `slots`, int64 [B].
        texts_by_pack: number of texts that end in each pack.
        prompts: number of prompts that the positions leave room for.
    """

    sot: Tensor
    ids: Tensor
    positions: Tensor
    sees: Tensor
    ends: Tensor
    slots: Tensor
    places: Tensor
    texts_by_pack: tuple[int, ...]
    prompts: int

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Any]) -> "PackedTexts":
        """Return the texts with copies of their tensors."""
        return replace(self, **tensors)

    def to(self, device: torch.device) -> "PackedTexts":
        """Return the texts with their tensors on a device."""
        return self.with_tensors({name: x.to(device) for name, x in self.tensors().items()})


def pack_texts(parts: TextParts, tokens_BT: Tensor, prompts: int) -> PackedTexts:
    """Lay out texts for `prompts` prompt positions behind the first token; on the CPU.

    Args:
        parts: the text tower, which defines the pooled token.
        tokens_BT: int64 [B, T] from open_clip's tokenizer, without room for prompts.
        prompts: number of prompt positions.

    Raises:
        UsageError: a text has no end-of-text token, is too long for the prompts, or has another
            start-of-text token than the first.
    """
    tokens_BT = tokens_BT.cpu()
    lengths_B = parts.pool_positions(tokens_BT)
    _check_texts(tokens_BT, lengths_B, 1 + prompts, parts)
    own_BT = np.where(
        np.arange(int(lengths_B.max())) < lengths_B.numpy()[:, None],
        tokens_BT[:, 1 : 1 + int(lengths_B.max())].numpy(),
        -1,  # tokens behind the pooled one are not used
    )
    length_B = lengths_B.numpy()
    if parts.class_token is not None:
        own_BT, length_B = _with_class_token(parts, own_BT, length_B, 1 + prompts)
    # sort, so that equal beginnings are adjacent, and split into trees that fit a pack
    order_B = np.lexsort(own_BT.T[::-1])
    own_BT, length_B = own_BT[order_B], length_B[order_B]
    alike_B = np.zeros_like(length_B)  # tokens shared with the text before
    alike_B[1:] = np.logical_and.accumulate(own_BT[1:] == own_BT[:-1], axis=1).sum(axis=1)
    alike_B = np.minimum(alike_B, length_B)

    size = max(PACK_ROWS, int(length_B.max()))
    starts, rows = _cut(alike_B.tolist(), length_B.tolist(), size)
    alike_B[starts] = 0
    begin_B, packs = _place(starts, rows, length_B - alike_B, size)

    # every token's row: of its own text, or of the text that first has the shared beginning
    depth_T = np.arange(own_BT.shape[1])
    is_own_BT = (depth_T >= alike_B[:, None]) & (depth_T < length_B[:, None])
    owner_BT = np.maximum.accumulate(np.where(is_own_BT, np.arange(len(own_BT))[:, None], 0), axis=0)
    row_BT = begin_B[owner_BT] + depth_T - alike_B[owner_BT]
    text_R, depth_R = is_own_BT.nonzero()
    row_R = row_BT[text_R, depth_R]
    ids_KS, depths_KS = np.zeros((2, packs, size), dtype=np.int64)
    ids_KS.flat[row_R], depths_KS.flat[row_R] = own_BT[text_R, depth_R], depth_R
    sees_KSS = np.zeros((packs, size, size), dtype=bool)
    seen_BT = _seen(parts, own_BT)
    for depth in depth_T:
        below = (depth_R >= depth) & seen_BT[text_R, depth]
        sees_KSS.reshape(-1, size)[row_R[below], row_BT[text_R[below], depth] % size] = True
    positions_KS = depths_KS + 1 + prompts
    if parts.class_token is not None:
        positions_KS[ids_KS == parts.class_id] = parts.context_length

    # pooled rows pack by pack, and the text of each
    end_B = np.empty_like(begin_B)
    end_B[order_B] = row_BT[np.arange(len(row_BT)), length_B - 1]
    by_end_B = end_B.argsort(kind="stable")
    pack_B, row_B = np.divmod(end_B[by_end_B], size)
    texts_K = np.bincount(pack_B, minlength=packs)
    first_K = texts_K.cumsum() - texts_K
    slot_B = pack_B * texts_K.max() + np.arange(len(pack_B)) - first_K[pack_B]
    text_KE = first_K[:, None] + np.minimum(np.arange(texts_K.max()), texts_K[:, None] - 1)
    return PackedTexts(
        sot=tokens_BT[0, :1],
        ids=torch.from_numpy(ids_KS),
        positions=torch.from_numpy(positions_KS),
        sees=torch.from_numpy(sees_KSS),
        ends=torch.from_numpy(row_B[text_KE]),
        slots=torch.from_numpy(slot_B),
        places=torch.from_numpy(by_end_B.argsort()),
        texts_by_pack=tuple(texts_K.tolist()),
        prompts=prompts,
    )


def _with_class_token(
    parts: TextParts, own_BT: np.ndarray, length_B: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Append the class token, and in front of it the first padding if that is seen; return the new lengths.

    Further padding is hidden from the class token, and no other row is used.
    """
    assert parts.class_token is not None
    own_BT = np.pad(own_BT, ((0, 0), (0, 2)), constant_values=-1)
    rows_B = np.arange(len(own_BT))
    if parts.class_token.hidden_behind:
        padded_B = first + length_B < parts.context_length
        own_BT[rows_B[padded_B], length_B[padded_B]] = parts.pad_id
        length_B = length_B + padded_B
    own_BT[rows_B, length_B] = parts.class_id
    return own_BT, length_B + 1


def _seen(parts: TextParts, own_BT: np.ndarray) -> np.ndarray:
    """Return whether rows attend to a token of their text, bool [B, T]; a mask may hide padding."""
    if parts.class_token is None:
        return np.ones(own_BT.shape, dtype=bool)
    shift = parts.class_token.hidden_behind
    seen_BT: np.ndarray = np.pad(own_BT != parts.pad_id, ((0, 0), (shift, 0)), constant_values=True)
    return seen_BT[:, : own_BT.shape[1]]


def _check_texts(tokens_BT: Tensor, lengths_B: Tensor, first: int, parts: TextParts) -> None:
    context = parts.context_length
    for row in (lengths_B < 1).nonzero()[:1].flatten().tolist():
        raise UsageError(f"text row {row} has no end-of-text token behind its first token")
    for row in (lengths_B + first > context).nonzero()[:1].flatten().tolist():
        raise UsageError(
            f"text row {row} is too long: {int(lengths_B[row]) + 1} tokens and {first - 1} prompts, "
            f"but the text tower has {context} positions"
        )
    for row in (tokens_BT[:, 0] != tokens_BT[0, 0]).nonzero()[:1].flatten().tolist():
        raise UsageError(f"text row {row} does not begin with the same start-of-text token as row 0")


def _cut(alike: list[int], lengths: list[int], size: int) -> tuple[list[int], list[int]]:
    """Split sorted texts into trees of at most `size` rows; return each tree's first text and its rows.

    A larger tree is split; its parts share nothing.
    """
    starts, rows = [0], [lengths[0]]
    for text in range(1, len(lengths)):
        added = lengths[text] - alike[text]
        if alike[text] and rows[-1] + added <= size:
            rows[-1] += added
        else:
            starts.append(text)
            rows.append(lengths[text])
    return starts, rows


def _place(starts: list[int], rows: list[int], added_B: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Return the index of each text's first own row, [B], and the number of packs.

    Packs are filled one by one with the largest tree that leaves no gap too small for any other, so that few
    rows are unused.
    """
    trees_by_rows: list[list[int]] = [[] for _ in range(size + 1)]
    for tree in reversed(range(len(rows))):
        trees_by_rows[rows[tree]].append(tree)
    smallest = min(rows)
    tree_begins = np.empty(len(rows), dtype=np.int64)
    packs, room = 0, 0
    for _ in rows:
        fitting = [n for n in range(room, 0, -1) if trees_by_rows[n]]
        if not fitting:
            packs, room = packs + 1, size
            fitting = [n for n in range(room, 0, -1) if trees_by_rows[n]]
        chosen = next((n for n in fitting if n == room or room - n >= smallest), fitting[0])
        tree_begins[trees_by_rows[chosen].pop()] = packs * size - room
        room -= chosen
    before_B = added_B.cumsum() - added_B
    texts = np.diff([*starts, len(added_B)])
    return np.repeat(tree_begins - before_B[starts], texts) + before_B, packs
