"""Small real open_clip models for the tests: real configs, seeded weights whose features differ visibly."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from teacher_cache.teacher.openclip import LoadedModel, load_model
from tests.small_tokenizers import write_tokenizer
from tests.timm_models import TIMM_TOWERS

_VISION = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 64, "head_width": 32}
_TEXT = {"context_length": 77, "vocab_size": 49408, "layers": 3, "width": 64, "heads": 2}
_CUSTOM_BLOCKS = {
    "ls_init_value": 0.5,
    "qk_norm": True,
    "scale_heads": True,
    "scale_attn_inner": True,
    "scale_attn": True,
    "scale_fc": True,
}

# A text tower without a causal mask, with a tokenizer of its own (`small_tokenizers.py`) in the folder.
_FULL_TEXT = {**_TEXT, "vocab_size": 512, "context_length": 20, "no_causal_mask": True, "pool_type": "last"}
_CANONICAL = {"clean": "canonicalize"}

CONFIGS: dict[str, dict[str, Any]] = {
    "gelu": {"embed_dim": 48, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "quickgelu": {"embed_dim": 48, "quick_gelu": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "two-blocks": {
        "embed_dim": 48,
        "quick_gelu": True,
        "vision_cfg": {**_VISION, "layers": 2},
        "text_cfg": {**_TEXT, "layers": 2},
    },
    "deep": {
        "embed_dim": 48,
        "vision_cfg": {**_VISION, "layers": 12},
        "text_cfg": {**_TEXT, "layers": 12},
    },
    # As OpenAI's models: the vision tower is wider than the text tower.
    "wide-vision": {
        "embed_dim": 48,
        "quick_gelu": True,
        "vision_cfg": {**_VISION, "width": 96},
        "text_cfg": _TEXT,
    },
    # CustomTextCLIP, every option of the custom block, pooling at the EOS token and over the patches.
    "custom": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": {
            **_VISION,
            **_CUSTOM_BLOCKS,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "no_ln_pre": True,
        },
        "text_cfg": {**_TEXT, **_CUSTOM_BLOCKS, "pool_type": "eos", "eos_id": 49407, "proj_bias": True},
    },
    # Attention pooling, patch dropout (off in evaluation), no text projection.
    "attn-pool": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {
            **_VISION,
            "ls_init_value": 0.5,
            "patch_dropout": 0.5,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "attn_pooler_queries": 4,
        },
        "text_cfg": {**_TEXT, "proj_type": "none", "norm_kwargs": {"eps": 1e-6}},
    },
    # open_clip 3.3 has this attention but cannot run it (torch.bmm of four dimensions).
    "cosine": {
        "embed_dim": 48,
        "vision_cfg": {**_VISION, "scaled_cosine_attn": True},
        "text_cfg": {**_TEXT, "scaled_cosine_attn": True},
    },
    # Its text tower cannot carry prompts.
    "causal-last": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": _VISION,
        "text_cfg": {**_TEXT, "pool_type": "last"},
    },
    # As SigLIP: T5's tokenizer, whose padding is its end, without punctuation; a sigmoid model with a bias.
    "siglip": {
        "embed_dim": 48,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": _VISION,
        "text_cfg": {
            **_FULL_TEXT,
            "hf_tokenizer_name": "t5",
            "tokenizer_kwargs": _CANONICAL,
            "proj_bias": True,
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    # As SigLIP 2: Gemma's tokenizer, GELU by tanh; without a projection, as its largest form.
    "siglip2": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": _VISION,
        "text_cfg": {
            **_FULL_TEXT,
            "hf_tokenizer_name": "gemma",
            "tokenizer_kwargs": _CANONICAL,
            "proj_type": "none",
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    # BERT's tokenizer with a start; its end becomes padding.
    "clipa": {
        "embed_dim": 48,
        "vision_cfg": {**_VISION, "pool_type": "avg", "no_ln_pre": True},
        "text_cfg": {
            **_FULL_TEXT,
            "hf_tokenizer_name": "bert",
            "tokenizer_kwargs": {"strip_sep_token": True},
        },
    },
    "full-first": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": _VISION,
        "text_cfg": {**_FULL_TEXT, "hf_tokenizer_name": "bert", "pool_type": "first"},
    },
    # CLIP's tokenizer; attends to padding.
    "mobileclip": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": _VISION,
        "text_cfg": {**_TEXT, "no_causal_mask": True},
    },
    "full-eos": {
        "embed_dim": 48,
        "vision_cfg": _VISION,
        "text_cfg": {**_TEXT, "no_causal_mask": True, "pool_type": "eos", "eos_id": 49407},
    },
    "coca": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {
            **_VISION,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "attn_pooler_queries": 4,
            "output_tokens": True,
        },
        "text_cfg": {**_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 76,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        },
    },
    "resnet": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": _TEXT,
    },
}

TIMM_CONFIGS = tuple(TIMM_TOWERS)
assert not CONFIGS.keys() & TIMM_TOWERS.keys()
CONFIGS |= {
    name: {
        "embed_dim": 64 if projection == "none" else 48,
        "vision_cfg": {
            "timm_model_name": model,
            "timm_model_pretrained": False,
            "timm_pool": pool,
            "timm_proj": projection,
            "image_size": size,
        },
        "text_cfg": _TEXT,
    }
    for name, (model, pool, projection, size) in TIMM_TOWERS.items()
}


def write_model(folder: Path, config_name: str, seed: int = 0) -> Path:
    """Write the model as a folder for `load_model`; return the folder.

    With open_clip's own initial values the features of two texts are nearly equal, which would hide errors.
    Here matrices keep the norm of their input, and norms, biases and embeddings vary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[config_name]
    preprocess = {
        "size": config["vision_cfg"]["image_size"],
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
    }
    record = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    if kind := config["text_cfg"].get("hf_tokenizer_name"):
        write_tokenizer(folder, kind, config["text_cfg"]["vocab_size"])
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale" or name.endswith("attn.logit_scale"):
                parameter.add_(0.1 * noise)
            elif "embedding" in name or name.endswith(("cls_emb", "attn_pool.query")):
                parameter.copy_(0.5 * noise)
            elif "proj" in name and parameter.ndim == 2 and not name.endswith("weight"):
                parameter.copy_(noise / parameter.shape[0] ** 0.5)  # applied from the right
            elif parameter.ndim >= 2 and parameter.shape[1:].numel() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:  # norms, layer scales, head scales
                parameter.mul_(1 + 0.2 * noise)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def share_vocabulary() -> None:
    """Read the tokenizer's file once per process.

    open_clip takes a tenth of a second for it in each of the hundreds of models that the tests load.
    """
    read = SimpleTokenizer.__init__

    @functools.cache
    def content(*given: Any, **named: Any) -> dict[str, Any]:
        tokenizer = object.__new__(SimpleTokenizer)
        read(tokenizer, *given, **named)
        return vars(tokenizer)

    def take(tokenizer: SimpleTokenizer, *given: Any, **named: Any) -> None:
        try:
            vars(tokenizer).update(content(*given, **named))
        except TypeError:  # unhashable arguments, such as a list
            read(tokenizer, *given, **named)

    SimpleTokenizer.__init__ = take


@functools.cache
def loaded(config_name: str, seed: int = 0) -> LoadedModel:
    """Load the model once; tests must not change its weights."""
    with tempfile.TemporaryDirectory() as folder:
        return load_model(f"local-dir:{write_model(Path(folder), config_name, seed)}")
