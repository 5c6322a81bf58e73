"""Text towers that can carry prompts: how the parts of each kind of model are found."""

from torch import nn

from teacher_cache.teacher.text_towers.open_clip import clip, custom_text_clip, transformers_tower
from teacher_cache.teacher.text_towers.text_parts import ClassToken, Layout, TextParts, unsupported

# Each returns None for a model that is not of its kind.
LAYOUTS: tuple[Layout, ...] = (clip, custom_text_clip)


def text_parts(model: nn.Module) -> TextParts:
    """Return the parts of the model's text tower.

    Raises:
        UnsupportedTowerError: another kind of text tower; the message names it and lists what works.
    """
    for layout in LAYOUTS:
        if (parts := layout(model)) is not None:
            return parts
    raise unsupported(f"the model class {type(model).__name__}")


__all__ = ["LAYOUTS", "ClassToken", "Layout", "TextParts", "text_parts", "transformers_tower"]
