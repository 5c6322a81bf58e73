"""What this project uses of timm that timm does not document.

- `VisionTransformer._pos_embed` and `Eva._pos_embed`: blocks run behind them.
- The attributes of their blocks and attentions (`vision_towers/timm_vit.py`, `vision_towers/timm_eva.py`).
- Its classes: recognised by name and module, so that subclasses, which may compute otherwise, are not.

A student with prompts in such a tower compares its own forward pass with timm's when it is made
(`vision_towers/timm_tower.py`), so a release that computes otherwise is refused. Seen with timm 1.0.31.
"""

from typing import Any

import timm
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

VERSION: str = timm.__version__


def is_timm(module: object, name: str) -> bool:
    """Return whether an object is of timm's class of that name, in any of timm's modules."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__.partition(".")[0] == "timm"


def embedded_rows(trunk: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the input of a trunk's blocks, [B, S, W], and its table of rotations; None without.

    Args:
        trunk: timm's VisionTransformer or Eva, in evaluation mode.
        images: normalised, [B, 3, H, W].
    """
    rows, rotations = trunk._pos_embed(trunk.patch_embed(images)), None
    if isinstance(rows, tuple):  # Eva
        rows, rotations = rows
    return trunk.norm_pre(rows), rotations


def rotated(x_BNGH: Tensor, rotations: Tensor, half: bool) -> Tensor:
    """Return queries or keys of grid rows with their rotary position embedding, as timm's attention does."""
    more = {"half": True} if half else {}  # older releases know only one form
    turned: Tensor = apply_rot_embed_cat(x_BNGH, rotations, **more)
    return turned


def joined(*pieces: Tensor | None) -> Tensor | None:
    """Return projections or their biases as one tensor; a missing bias among others is zeros."""
    known = next((piece for piece in pieces if piece is not None), None)
    if known is None:
        return None
    return torch.cat([torch.zeros_like(known) if piece is None else piece for piece in pieces])
