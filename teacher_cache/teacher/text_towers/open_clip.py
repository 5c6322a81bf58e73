"""The layouts of open_clip's `CLIP`, `CustomTextCLIP` and `CoCa`."""

from functools import wraps
from typing import Any

import open_clip
from torch import nn

from teacher_cache.compat.open_clip import is_own
from teacher_cache.errors import UnsupportedTowerError
from teacher_cache.teacher.text_towers.text_parts import ClassToken, Layout, TextParts, unsupported

CAUSAL_POOLS = ("argmax", "eos")
FULL_POOLS = (*CAUSAL_POOLS, "last", "first")


def transformers_tower(name: str) -> UnsupportedTowerError:
    """Return the error for a text tower of the transformers library, whose blocks are not open_clip's."""
    return unsupported(f"a text tower of the transformers library ({name})")


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

    Subclasses and lookalikes may run their tower differently.
    """
    if type(model) is not open_clip.CLIP:
        return None
    tower: Any = model
    return _parts(tower, tower.text_pool_type, tower.text_eos_id)


@_reads_undocumented_names
def custom_text_clip(model: nn.Module) -> TextParts | None:
    """Return the parts of a `CustomTextCLIP` or `CoCa`, which keep them in `.text`; None for other classes.

    Of a CoCa, they are those of the contrastive part: the decoder is not used.
    """
    if type(model) not in (open_clip.CustomTextCLIP, open_clip.CoCa):
        return None
    tower: Any = model.text
    if is_own(tower, "HFTextEncoder"):
        raise transformers_tower(tower.config.model_type)
    if not is_own(tower, "TextTransformer"):
        raise unsupported(f"the text tower {type(tower).__name__}")
    pad_id = int(tower.pad_id) if tower.use_pad_mask else None
    if tower.cls_emb is None:
        return _parts(tower, tower.pool_type, tower.eos_id, pad_id)
    if tower.attn_mask is None:
        raise unsupported("a text tower with a class token and without a causal mask")
    token = ClassToken(tower.cls_emb, 0 if tower.correct_cls_mask else 1)
    return _parts(tower, "class", tower.eos_id, int(tower.pad_id), token)


def _parts(
    tower: Any, pool: Any, eos_id: int, pad_id: int | None = None, class_token: ClassToken | None = None
) -> TextParts:
    causal = tower.attn_mask is not None
    if class_token is None and pool not in (CAUSAL_POOLS if causal else FULL_POOLS):
        raise unsupported(f"a {'causal ' if causal else ''}text tower pooled by '{pool}'")
    return TextParts(
        token_embedding=tower.token_embedding,
        positional_embedding=tower.positional_embedding,
        blocks=tower.transformer.resblocks,
        ln_final=tower.ln_final,
        projection=tower.text_projection,
        pool=pool,
        eos_id=int(eos_id),
        attn_mask=tower.attn_mask,
        class_token=class_token,
        pad_id=pad_id,
    )
