"""The layouts of open_clip's `CLIP` and `CustomTextCLIP`."""

from functools import wraps
from typing import Any

import open_clip
from torch import nn

from teacher_cache.compat.open_clip import is_own
from teacher_cache.errors import UnsupportedTowerError
from teacher_cache.teacher.text_towers.text_parts import Layout, TextParts, unsupported


def _reads_undocumented_names(layout: Layout) -> Layout:
    """Report an open_clip without these names; a teacher then runs the tower's own `encode_text`."""

    @wraps(layout)
    def find(model: nn.Module) -> TextParts | None:
        try:
            return layout(model)
        except AttributeError as error:
            raise UnsupportedTowerError(
                f"the text tower of this release of open_clip cannot carry text prompts ({error}); rpp is "
                "tested with open_clip 3.2 and 3.3"
            ) from error

    return find


@_reads_undocumented_names
def clip(model: nn.Module) -> TextParts | None:
    """Return the parts of a `CLIP`, which keeps them on itself; None for other classes.

    Subclasses and lookalikes such as CoCa may run their tower differently.
    """
    if type(model) is not open_clip.CLIP:
        return None
    tower: Any = model
    return _parts(tower, tower.text_pool_type, tower.text_eos_id)


@_reads_undocumented_names
def custom_text_clip(model: nn.Module) -> TextParts | None:
    """Return the parts of a `CustomTextCLIP`, which keeps them in `.text`; None for other classes."""
    if type(model) is not open_clip.CustomTextCLIP:
        return None
    tower: Any = model.text
    if not is_own(tower, "TextTransformer"):
        raise unsupported(f"the text tower {type(tower).__name__}")
    if tower.cls_emb is not None:
        raise unsupported("a text tower with a class embedding behind the text (CoCa's)")
    return _parts(tower, tower.pool_type, tower.eos_id)


def _parts(tower: Any, pool: Any, eos_id: int) -> TextParts:
    if tower.attn_mask is None:
        raise unsupported("a bidirectional text tower (SigLIP's)")
    if pool not in ("argmax", "eos"):
        raise unsupported(f"a text tower pooled by '{pool}'")
    return TextParts(
        token_embedding=tower.token_embedding,
        positional_embedding=tower.positional_embedding,
        blocks=tower.transformer.resblocks,
        ln_final=tower.ln_final,
        projection=tower.text_projection,
        pool=pool,
        eos_id=int(eos_id),
        attn_mask=tower.attn_mask,
    )
