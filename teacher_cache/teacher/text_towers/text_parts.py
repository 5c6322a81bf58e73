"""The parts of a text tower, named the same for every model.

Shapes: B texts, T tokens, W text width, D embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from teacher_cache.errors import UnsupportedTowerError

WORKING_TOWERS = (
    "open_clip models with a text transformer of open_clip's own (ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, "
    "ViT-g-14, ViT-bigG-14 and their other forms, CLIPA, SigLIP, SigLIP 2, EVA02, PE-Core, MobileCLIP, CoCa)"
)


@dataclass(frozen=True)
class ClassToken:
    """A learned token behind the text, whose output is the text feature (CoCa's).

    A mask hides padding from it. In published CoCa weights the mask is shifted by one position: a token is
    hidden if the token before it is padding. So the first position behind a text is seen and the class token
    does not see itself, unless the text fills all positions.

    Attributes:
        embedding: float32 [W].
        hidden_behind: how many tokens in front of a token hide it if they are padding: 1, or 0 for a mask
            that is not shifted (open_clip's `correct_cls_mask`).
    """

    embedding: Tensor
    hidden_behind: Literal[0, 1]


@dataclass(frozen=True)
class TextParts:
    """The parts of a text tower.

    Attributes:
        token_embedding: token ids to rows of width W.
        positional_embedding: one row for each position, [positions, W].
        blocks: modules that are called as open_clip's residual attention blocks. A student with text prompts
            also reads `ln_1`, `attn`, `ln_2` and `mlp` of each (`student_train/model/towers.py`).
        ln_final: the norm in front of the projection.
        projection: W to D, as a module, as a matrix [W, D], or None for none.
        pool: which position becomes the text feature: that of the largest token id, of the first `eos_id`,
            the first or the last one, or that of the class token.
        eos_id: id of the end-of-text token.
        attn_mask: the causal mask that is added to attention, [positions, positions]; None if every position
            attends to all.
        class_token: the token behind the text; None without.
        pad_id: id of padding that a mask hides; None if positions attend to padding. A causal tower without
            a class token does not need a mask: nothing reads padding there.
    """

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: nn.ModuleList
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    pool: Literal["argmax", "eos", "first", "last", "class"]
    eos_id: int
    attn_mask: Tensor | None
    class_token: ClassToken | None = None
    pad_id: int | None = None

    @property
    def causal(self) -> bool:
        """Whether each position attends only to those before it."""
        return self.attn_mask is not None

    @property
    def context_length(self) -> int:
        """Number of positions for tokens."""
        return self.positional_embedding.shape[0] - (self.class_token is not None)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids; `class_id` is that of the class token."""
        if self.class_token is None:
            embedded: Tensor = self.token_embedding(ids)
            return embedded
        is_class = ids == self.class_id
        rows: Tensor = self.token_embedding(ids.masked_fill(is_class, 0))
        return torch.where(is_class[..., None], self.class_token.embedding.to(rows.dtype), rows)

    @property
    def class_id(self) -> int:
        """The id that stands for the class token; the tokenizer does not have it."""
        return self.token_embedding.num_embeddings

    def pool_positions(self, tokens_BT: Tensor) -> Tensor:
        """Return the position whose output is the text feature, [B] int64.

        With a class token: that of the last token that is not padding.
        """
        if self.pool == "argmax":
            return tokens_BT.argmax(dim=-1)
        if self.pool == "eos":
            return (tokens_BT == self.eos_id).int().argmax(dim=-1)
        width = tokens_BT.shape[1]
        if self.pool == "class":
            is_text_BT: Tensor = tokens_BT != self.pad_id  # type: ignore[assignment]
            return width - 1 - is_text_BT.int().flip(-1).argmax(dim=-1)
        return torch.full_like(tokens_BT[:, 0], 0 if self.pool == "first" else width - 1)

    def project(self, pooled_BW: Tensor) -> Tensor:
        """Project text features of width W to the joint embedding, [B, D]."""
        if self.projection is None:
            return pooled_BW
        if isinstance(self.projection, nn.Module):
            projected: Tensor = self.projection(pooled_BW)
            return projected
        return pooled_BW @ self.projection


Layout = Callable[[nn.Module], TextParts | None]


def unsupported(what: str) -> UnsupportedTowerError:
    """Return the error for a text tower in which prompts cannot be computed."""
    return UnsupportedTowerError(
        f"{what} cannot carry text prompts; what works: {WORKING_TOWERS}; `rpp models` lists all"
    )
