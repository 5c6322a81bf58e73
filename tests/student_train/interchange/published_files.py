"""Checkpoints as the authors' trainers write them, and the forward passes that the authors publish, plainly.

The text towers follow CoOp's `PromptLearner` and `TextEncoder`; deep prompts follow the blocks
`ResidualAttentionBlock_IVLP` and `ResidualAttentionBlock_MaPLe`, and the vision tower `VisionTransformer`, of
github.com/muzairkhattak/multimodal-prompt-learning (clip/model.py, trainers/maple.py, independentVL.py,
vpt.py), whose prompts stand behind the patches in front of `ln_pre`.

Shapes: n prompt length, W text width, V vision width, J depth.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ["cat", "grand piano", 'n\'t "quoted", name', "hündchen"]
BLOCKS, TEXT_WIDTH, VISION_WIDTH = 3, 64, 96  # of the model `wide-vision`


def dassl_checkpoint(path: Path, state: dict[str, Tensor], **others: Any) -> Path:
    """Write a state as Dassl's `save_checkpoint` does."""
    scheduler = {"last_epoch": 5, "base_lrs": [0.002]}
    torch.save(
        {"state_dict": state, "epoch": 5, "optimizer": {"state": {}}, "scheduler": scheduler, **others}, path
    )
    return path


def open_model(folder: Path) -> tuple[Any, Any]:
    """Return open_clip's own model of a folder and its tokenizer."""
    name = f"local-dir:{folder}"
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)


@dataclass(frozen=True)
class Learned:
    """What a method learned: prompts of the text blocks [n, W], of the vision blocks [m, V] or layers.

    Attributes:
        text, vision: by block; empty without prompts in the tower.
        words: the words of CTX_INIT behind the first n.
    """

    text: list[Tensor]
    vision: list[Tensor]
    words: str = ""


def learned(text: tuple[int, int], vision: tuple[int, int], words: str = "") -> Learned:
    """Random prompts of the size of real ones; each tower's depth and length."""
    generator = torch.Generator().manual_seed(text[0] + 10 * vision[0])

    def prompts(depth: int, length: int, width: int) -> list[Tensor]:
        return [0.5 * torch.randn(length, width, generator=generator) for _ in range(depth)]

    return Learned(prompts(*text, TEXT_WIDTH), prompts(*vision, VISION_WIDTH), words)


def class_texts(model: Any, tokenizer: Any, n: int, words: str) -> tuple[Tensor, Tensor]:
    """Return tokens and embeddings of 'X ... X WORDS NAME.' with n X, as CoOp's `PromptLearner`."""
    prefix = " ".join([*["X"] * n, *words.split()])
    tokens = tokenizer([f"{prefix} {name}." for name in NAMES])
    return tokens, model.token_embedding(tokens).detach()


def class_buffers(model: Any, tokenizer: Any, n: int, words: str = "") -> dict[str, Tensor]:
    """Return `token_prefix` and `token_suffix`, which are views in files of a training on a CPU."""
    _, embedding = class_texts(model, tokenizer, n, words)
    return {"token_prefix": embedding[:, :1], "token_suffix": embedding[:, 1 + n :]}


def frozen_state(
    model: Any, towers: tuple[str, ...] = ("image_encoder", "text_encoder")
) -> dict[str, Tensor]:
    """Return the frozen weights as `CustomCLIP` names them, in float16."""
    state = {"logit_scale": model.logit_scale.detach()}
    for name, tensor in model.state_dict().items():
        room = "image_encoder" if name.startswith("visual.") else "text_encoder"
        if room in towers and name not in ("logit_scale", "token_embedding.weight"):
            state[f"{room}.{name.removeprefix('visual.')}"] = tensor.half()
    return state


def ivlp_state(model: Any, tokenizer: Any, found: Learned) -> dict[str, Tensor]:
    """The state of `CustomCLIP` of IVLP and PromptSRC, or of VPT without text prompts."""
    state = frozen_state(model)
    if found.text:
        state["prompt_learner.ctx"] = found.text[0]
        buffers = class_buffers(model, tokenizer, len(found.text[0]), found.words)
        state |= {f"prompt_learner.{name}": tensor for name, tensor in buffers.items()}
    if found.vision:
        state["image_encoder.VPT"] = found.vision[0]
    for room, prompts in (("text_encoder", found.text), ("image_encoder", found.vision)):
        for block, prompt in enumerate(prompts[1:], start=1):
            state[f"{room}.transformer.resblocks.{block}.VPT_shallow"] = prompt
    return state


def maple_state(model: Any, tokenizer: Any, found: Learned) -> tuple[dict[str, Tensor], Learned]:
    """The state of MaPLe's `CustomCLIP` with random projections, and its prompts in both towers."""
    generator = torch.Generator().manual_seed(9)
    state = {**frozen_state(model), "prompt_learner.ctx": found.text[0]}
    buffers = class_buffers(model, tokenizer, len(found.text[0]), found.words)
    state |= {f"prompt_learner.{name}": tensor for name, tensor in buffers.items()}
    vision = []
    for block, prompt in enumerate(found.text):
        layer = f"compound_prompt_projections.{block - 1}" if block else "proj"
        weight = torch.randn(VISION_WIDTH, TEXT_WIDTH, generator=generator) / TEXT_WIDTH**0.5
        bias = 0.1 * torch.randn(VISION_WIDTH, generator=generator)
        state |= {f"prompt_learner.{layer}.weight": weight, f"prompt_learner.{layer}.bias": bias}
        if block:
            state[f"prompt_learner.compound_prompts_text.{block - 1}"] = prompt
        vision.append(prompt @ weight.T + bias)
    return state, Learned(found.text, vision, found.words)


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, found: Learned) -> Tensor:
    """Unit class features of NAMES; without text prompts those of 'a photo of a NAME.', as VPT."""
    if not found.text:
        return F.normalize(model.encode_text(tokenizer([f"a photo of a {name}." for name in NAMES])), dim=-1)
    context, *deep = found.text
    n = len(context)
    tokens, embedding = class_texts(model, tokenizer, n, found.words)
    prompts = torch.cat([embedding[:, :1], context.expand(len(NAMES), -1, -1), embedding[:, 1 + n :]], dim=1)
    x = prompts + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number <= len(deep):
            own = deep[number - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], own, x[:, 1 + n :]], dim=1)
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)]
    return F.normalize(x @ model.text_projection, dim=-1)


@torch.no_grad()
def image_features(model: Any, pixels: Tensor, found: Learned) -> Tensor:
    """Image features."""
    visual = model.visual
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    n = len(found.vision[0]) if found.vision else 0
    if found.vision:
        x = torch.cat([x, found.vision[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for number, block in enumerate(visual.transformer.resblocks):
        if 0 < number < len(found.vision):
            own = found.vision[number].expand(len(x), -1, -1)
            x = torch.cat([x[:, : x.shape[1] - n], own], dim=1)
        x = block(x)
    features: Tensor = visual.ln_post(x[:, 0]) @ visual.proj
    return features
