"""The layout of open_clip's `TimmModel` whose trunk is timm's VisionTransformer or Eva.

Convolutional stems (MobileCLIP-B) and first stages (ViTamin) run before the blocks, as they are. Pooling sees
the rows that it was trained on: prompts are not among them.

Shapes: as `vision_parts.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from student_train.compat.timm import VERSION, embedded_rows, is_timm, rotated
from student_train.model.vision_towers.timm_eva import eva_block
from student_train.model.vision_towers.timm_vit import vit_block
from student_train.model.vision_towers.vision_parts import Block, Layout, VisionParts, unsupported
from teacher_cache.compat.open_clip import is_own
from teacher_cache.errors import UnsupportedTowerError

# Each returns None for a block that is not of its kind.
BLOCKS: tuple[Callable[[Any], Block | None], ...] = (vit_block, eva_block)
TRUNKS = ("VisionTransformer", "Eva")


def _reads_undocumented_names(layout: Layout) -> Layout:
    """Report a timm without these names."""

    @wraps(layout)
    def find(visual: Any) -> VisionParts | None:
        try:
            return layout(visual)
        except AttributeError as error:
            raise _other_timm(str(error)) from error

    return find


def _other_timm(what: str) -> UnsupportedTowerError:
    return UnsupportedTowerError(
        f"this release of timm ({VERSION}) computes vision towers in another way ({what}), so they cannot "
        "carry prompts; rpp is tested with timm 1.0.17 to 1.0.31"
    )


@_reads_undocumented_names
def timm_tower(visual: Any) -> VisionParts | None:
    """Return the parts of a `TimmModel`; None for other classes.

    Raises:
        UnsupportedTowerError: its trunk has no blocks of a known kind.
    """
    if not is_own(visual, "TimmModel"):
        return None
    trunk = visual.trunk
    if not any(is_timm(trunk, name) for name in TRUNKS):
        kind = type(trunk).__name__
        raise unsupported(f"the vision tower {kind} of timm", kind)
    if not trunk.global_pool:
        raise unsupported("a vision tower without pooling")
    width = trunk.embed_dim
    blocks = [_named(block, width) for block in trunk.blocks]
    rows = trunk.num_prefix_tokens + trunk.patch_embed.num_patches

    def embed(images: Tensor) -> tuple[Tensor, list[Block]]:
        x_BSW, table = embedded_rows(trunk, images)
        return x_BSW, blocks if table is None else _rotated(trunk, blocks, table)

    def pool(images: Tensor, rows_BSW: Tensor) -> Tensor:
        features: Tensor = visual.head(trunk.forward_head(trunk.norm(rows_BSW)))
        return features

    only_class_token = trunk.attn_pool is None and trunk.global_pool == "token"
    return VisionParts(blocks, width, rows, 1 if only_class_token else rows, embed, pool)


def _named(block: Any, width: int) -> Block:
    found = next((own for kind in BLOCKS if (own := kind(block)) is not None), None)
    if found is None:
        raise unsupported(f"a vision tower with timm's {type(block).__name__}")
    if found.attn.in_proj_weight.shape != (3 * width, width):
        raise unsupported("a vision tower whose heads together are not as wide as its rows")
    return found


def _rotated(trunk: Any, blocks: list[Block], table: Tensor) -> list[Block]:
    """Return blocks with the rotary position embeddings of one image size.

    Args:
        table: of the patches, [G, 2 H]; of a trunk with `rope_mixed` one for each block and head,
            [L, N, G, 2 H].
    """
    attn = trunk.blocks[0].attn
    before, half = attn.num_prefix_tokens, bool(getattr(attn, "rotate_half", False))
    tables = table if getattr(trunk, "rope_mixed", False) else [table] * len(blocks)
    return [
        replace(block, attn=replace(block.attn, rotate=_GridRotation(own, before, half)))
        for block, own in zip(blocks, tables, strict=True)
    ]


@dataclass(frozen=True)
class _GridRotation:
    """Rotary position embeddings of patches; class token, registers and prompts have none.

    Attributes:
        table: of the patches, [G, 2 H] or [N, G, 2 H].
        before: rows before the patches.
        half: which numbers of a head form pairs, as timm's `rotate_half`.
    """

    table: Tensor
    before: int
    half: bool

    def __call__(self, x_BTNH: Tensor) -> Tensor:
        if x_BTNH.shape[1] <= self.before:
            return x_BTNH
        end = self.before + self.table.shape[-2]
        grid_BNGH = x_BTNH[:, self.before : end].transpose(1, 2)
        turned = rotated(grid_BNGH, self.table, self.half).type_as(x_BTNH).transpose(1, 2)
        return torch.cat([x_BTNH[:, : self.before], turned, x_BTNH[:, end:]], dim=1)
