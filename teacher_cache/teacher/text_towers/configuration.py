"""What a model's configuration says about its text tower, without weights.

The reasons are those that the layouts give for a loaded model.
"""

from typing import Any

CAUSAL_POOLS = ("argmax", "eos")
FULL_POOLS = (*CAUSAL_POOLS, "last", "first")


def text_support(config: dict[str, Any]) -> str | None:
    """Return why a text tower cannot carry prompts, as the subject of '... cannot carry text prompts'.

    Args:
        config: as `open_clip.get_model_config` returns it.

    Returns:
        None if it can.
    """
    text = config.get("text_cfg") or {}
    if name := text.get("hf_model_name"):
        return transformers_tower(name)
    causal = is_causal(config)
    if text.get("embed_cls"):
        return None if causal else "a text tower with a class token and without a causal mask"
    return refused_pooling(text.get("pool_type", "argmax"), causal)


def is_causal(config: dict[str, Any]) -> bool:
    """Return whether the text tower has a causal mask, so that all classes share the rows of the prompts."""
    text = config.get("text_cfg") or {}
    return not (text.get("no_causal_mask") or text.get("hf_model_name"))


def transformers_tower(name: str) -> str:
    """Return the reason for a text tower of the transformers library."""
    return f"a text tower of the transformers library ({name}), whose blocks are not open_clip's,"


def refused_pooling(pool: str, causal: bool) -> str | None:
    """Return the reason for a tower with other pooling; None if prompts can be computed."""
    if pool in (CAUSAL_POOLS if causal else FULL_POOLS):
        return None
    return f"a {'causal ' if causal else ''}text tower pooled by '{pool}'"
