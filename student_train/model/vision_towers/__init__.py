"""Vision towers that can carry prompts: how the parts of each kind of tower are found."""

from typing import Any

from student_train.model.vision_towers.open_clip import open_clip_vit
from student_train.model.vision_towers.timm_tower import timm_tower
from student_train.model.vision_towers.vision_parts import Layout, VisionParts, unsupported

# Each returns None for a tower that is not of its kind.
LAYOUTS: tuple[Layout, ...] = (open_clip_vit, timm_tower)


def vision_parts(visual: Any) -> VisionParts:
    """Return the parts of a model's vision tower, `model.visual`.

    Raises:
        UnsupportedTowerError: another kind of tower; the message names it and lists what works.
    """
    for layout in LAYOUTS:
        if (parts := layout(visual)) is not None:
            return parts
    kind = type(visual).__name__
    raise unsupported(f"the vision tower {kind}", kind)


__all__ = ["LAYOUTS", "Layout", "VisionParts", "vision_parts"]
