"""What a model's tokenizer puts around the tokens of a text: start, end and padding.

CLIP's tokenizer has all three, SigLIP's has no start and pads with its end, BERT's for CLIPA has no end.
Read from the tokens of short texts, so that any tokenizer works.

Shapes: B texts, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from teacher_cache.errors import UnsupportedTowerError


@dataclass(frozen=True)
class TextFrame:
    """The tokens around a text.

    Attributes:
        start: in front of every text; empty if there is none.
        end: behind every text, in front of padding; empty if it is padding itself.
        pad: fills up to the context length.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int

    def lengths(self, tokens_BT: Tensor) -> Tensor:
        """Return the number of positions that each text needs, start and one end included, [B] int64."""
        is_text_BT = tokens_BT != self.pad
        behind_B = is_text_BT.int().flip(-1).argmax(dim=-1)  # padding behind the text
        lengths_B = torch.where(is_text_BT.any(dim=-1), tokens_BT.shape[1] - behind_B, 0)
        return lengths_B if self.end else lengths_B + 1

    def body(self, tokens_T: Tensor) -> Tensor:
        """Return the tokens of a text without start, end and padding, int64 [T']."""
        length = int(self.lengths(tokens_T[None]))
        return tokens_T[len(self.start) : length - max(1, len(self.end))]


def text_frame(tokenizer: Callable[..., Tensor]) -> TextFrame:
    """Return what a tokenizer puts around texts.

    Raises:
        UnsupportedTowerError: it puts a token behind the padding.
    """
    empty_T, *others = tokenizer(["", "a", "b"]).tolist()
    pad = empty_T[-1]
    if empty_T[-2] != pad:
        raise UnsupportedTowerError(
            f"the tokenizer puts the token {pad} behind the padding of a text; text prompts need a tokenizer "
            "that puts padding at the end"
        )
    padded = next(row for row in range(len(empty_T)) if set(empty_T[row:]) == {pad})
    around = empty_T[:padded]
    start = around[:1] if around and all(tokens_T[0] == around[0] for tokens_T in others) else []
    return TextFrame(tuple(start), tuple(around[len(start) :]), pad)
