"""The layout of open_clip's own VisionTransformer."""

from functools import partial
from typing import Any

from torch import Tensor

from student_train.model.vision_towers.vision_parts import VisionParts
from teacher_cache.compat.open_clip import embedded_rows, is_own, pooled_features


def open_clip_vit(visual: Any) -> VisionParts | None:
    """Return the parts of an open_clip VisionTransformer; None for other classes."""
    if not is_own(visual, "VisionTransformer"):
        return None
    rows = 1 + visual.grid_size[0] * visual.grid_size[1]

    def embed(images: Tensor) -> tuple[Tensor, Any]:
        return embedded_rows(visual, images), visual.transformer.resblocks

    return VisionParts(
        blocks=visual.transformer.resblocks,
        width=visual.class_embedding.shape[0],
        rows=rows,
        pooled_rows=1 if visual.attn_pool is None and visual.pool_type == "tok" else rows,
        embed=embed,
        pool=partial(pooled_features, visual),
    )
