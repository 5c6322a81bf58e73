"""Import published prompts as students, to evaluate them like our own runs.

`checkpoint_state.py` reads a file, `methods.py` says what its tensors mean, and `frozen_weights.py` compares
the frozen model. All methods that can be imported have prompts of structure `shared` under carry `replace`:
CoOp and its kind at the input of the text tower, IVLP, VPT and PromptSRC in the blocks of one or both towers.
MaPLe's vision prompts are projections of its text prompts, constant after training.

Shapes: n prompt length, W text width, V vision width.
"""

import logging
import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from student_train.interchange.checkpoint_state import first_names, read_state
from student_train.interchange.frozen_weights import (
    check_frozen_weights,
    other_class_tokens,
    words_before_names,
)
from student_train.interchange.methods import IVLP, PublishedPrompts, published_prompts
from student_train.interchange.settings import ImportSettings
from student_train.model.prompts import Prompts
from student_train.model.settings import PromptSettings, Tower
from student_train.model.stored import ImportRecord, file_digest
from student_train.model.student import TOWERS, PromptedCLIP, save_student
from student_train.runs.record import STUDENT
from teacher_cache.classes.templates import PROMPT_WORDS
from teacher_cache.conventions import ConventionOptions
from teacher_cache.errors import UsageError, printable
from teacher_cache.files.atomic_write import make_folder
from teacher_cache.files.places import place_of
from teacher_cache.files.remote import local_file
from teacher_cache.teacher.openclip import LoadedModel, load_model, vision_transformer
from teacher_cache.teacher.text_towers import text_parts

# Methods whose N_CTX prompts replace the first words of CTX_INIT if N_CTX is at most 4: further words stay
# (github.com/muzairkhattak/multimodal-prompt-learning/issues/32).
CUT_INIT, LONGEST_CUT = ("MaPLe", IVLP, "PromptSRC"), 4

log = logging.getLogger(__name__)


def import_prompts(settings: ImportSettings, checkpoint: str | os.PathLike[str]) -> Path:
    """Write a published checkpoint as `student.safetensors` and return the file.

    Its record names the method, the checkpoint and the number of tensors that were used and redundant
    (`ImportRecord`). A warning reports class texts of another model.

    Raises:
        UsageError: the checkpoint is not one of a method that a student can express, has unknown or missing
            tensors, or was trained on another model; its context differs for each class (CoOp's CSC); or the
            folder already has a student.
    """
    if os.path.exists(settings.out / STUDENT):
        raise UsageError(f"{settings.out} already has a student; choose another --out")
    checkpoint = Path(local_file(place_of(checkpoint)))
    found = read_prompts(checkpoint)
    like = ConventionOptions(weights_like=settings.weights_like)
    base = load_model(settings.model, settings.pretrained, conventions=like)
    for note in base.notes:
        log.warning(note)
    _check_towers(checkpoint, base, found)
    check_frozen_weights(checkpoint, base, found.frozen)
    other_texts = _warn_of_other_texts(checkpoint, base, found)
    words = settings.fixed_words
    if words is None:
        words = _fixed_words(checkpoint, base, found, other_texts)
    student = PromptedCLIP(base, _prompt_settings(found, words))
    with torch.no_grad():
        for tower, prompts in _prompts_behind_embeddings(base, found).items():
            cast(Prompts, student.tower_prompts(tower)).q.copy_(torch.stack(prompts))
    student.imported = ImportRecord(
        method=found.method,
        file=printable(checkpoint.name),
        file_digest=file_digest(checkpoint),
        used=found.used,
        redundant=len(found.class_tokens) + len(found.frozen) + found.unused,
    )
    make_folder(settings.out)
    return save_student(student, settings.out)


def read_prompts(checkpoint: Path) -> PublishedPrompts:
    """Read the prompts of a checkpoint, without comparing its frozen model.

    Raises:
        UsageError: as `import_prompts`.
    """
    return published_prompts(checkpoint, read_state(checkpoint))


def import_summary(imported: ImportRecord, prompts: PromptSettings) -> str:
    """Return one line that says what was imported."""
    depths = {"text": prompts.prompt_depth, "vision": prompts.vision_prompt_depth or prompts.prompt_depth}
    towers = [
        f"{tower} depth {depths[tower]}, length {prompts.length_of(tower)}"
        for tower in TOWERS
        if prompts.has_prompts(tower)
    ]
    words = f"; '{prompts.fixed_words}' before each class name" if prompts.fixed_words else ""
    used = f"{imported.used} tensor{'' if imported.used == 1 else 's'} used"
    return f"{imported.method}: {'; '.join(towers)}{words}; {used}, {imported.redundant} redundant"


def _prompt_settings(found: PublishedPrompts, fixed_words: str) -> PromptSettings:
    first, *second = [prompts for prompts in (found.text, found.vision) if prompts]
    vision = second[0] if second else first
    return PromptSettings(
        towers="both" if second else "text" if found.text else "vision",
        prompt_structure="shared",
        prompt_depth=len(first),
        prompt_length=len(first[0]),
        vision_prompt_depth=len(vision) if len(vision) != len(first) else None,
        vision_prompt_length=len(vision[0]) if len(vision[0]) != len(first[0]) else None,
        fixed_words=fixed_words,
    )


def _check_towers(checkpoint: Path, base: LoadedModel, found: PublishedPrompts) -> None:
    sizes = {}
    if found.text:
        parts = text_parts(base.model)
        if not parts.causal or parts.class_token is not None:
            raise UsageError(
                f"{checkpoint} has text prompts of {found.method}, which are those of a text tower like "
                f"CLIP's; {base.name} has another kind"
            )
        sizes["text"] = (found.text, parts.positional_embedding.shape[1], len(parts.blocks))
    if found.vision:
        visual = vision_transformer(base.model)
        blocks = len(visual.transformer.resblocks)
        sizes["vision"] = (found.vision, visual.class_embedding.shape[0], blocks)
    for tower, (prompts, width, blocks) in sizes.items():
        own = prompts[0].shape[1]
        if (own, len(prompts)) == (width, min(len(prompts), blocks)):
            continue
        what = "context vectors" if tower == "text" else "vision prompts"
        theirs, ours = f"{what} of width {own}", f"width {width}"
        if own == width:
            theirs, ours = f"{what} for {len(prompts)} blocks", f"{blocks} blocks"
        raise UsageError(
            f"{checkpoint} has {theirs}, but the {tower} tower of {base.name} has {ours}: the prompts were "
            "trained on another model"
        )


@torch.no_grad()
def _prompts_behind_embeddings(base: LoadedModel, found: PublishedPrompts) -> dict[Tower, list[Tensor]]:
    """Return the prompts as a student has them: those of block 1 are the input of the block."""
    towers: dict[Tower, list[Tensor]] = {}
    if found.text:
        first_nW, *deep = found.text
        positions = text_parts(base.model).positional_embedding
        towers["text"] = [first_nW + positions[1 : 1 + len(first_nW)], *deep]
    if found.vision:
        first_nV, *deep = found.vision
        towers["vision"] = [vision_transformer(base.model).ln_pre(first_nV), *deep]
    return towers


def _warn_of_other_texts(checkpoint: Path, base: LoadedModel, found: PublishedPrompts) -> bool:
    """Warn of class texts of another model; return whether there are some."""
    other = other_class_tokens(base, found.class_tokens) if found.text else []
    if other:
        log.warning(
            "%s: its embeddings of class texts (%s) are not those of %s: the prompts were probably trained "
            "on another model",
            checkpoint,
            first_names(other),
            base.name,
        )
    return bool(other)


def _fixed_words(checkpoint: Path, base: LoadedModel, found: PublishedPrompts, other_texts: bool) -> str:
    """Return the words between the text prompts and the class names.

    Raises:
        UsageError: the checkpoint leaves them open.
    """
    if not found.text:
        return ""
    length = len(found.text[0])
    if found.method not in CUT_INIT or length > LONGEST_CUT:
        return ""
    words = " ".join(PROMPT_WORDS.split()[length:])
    tokens = None if other_texts else words_before_names(base, found.class_tokens)
    if tokens is not None:
        usual = _tokens(base, words)
        if tokens[: len(usual)] == usual and words:
            return words
        classes = max(len(x) for name, x in found.class_tokens.items() if name.endswith("suffix"))
        if not tokens or classes == 1:
            return ""
        raise UsageError(
            f"{checkpoint}: all {classes} class texts in token_suffix begin with the same tokens, "
            f"{_text(base, tokens)}; give these words with --fixed-words if CTX_INIT had more words than "
            "N_CTX, or --fixed-words '' if they are part of the class names"
        )
    if not words:
        return ""
    suffix = "a token_suffix of another model" if other_texts else "no token_suffix"
    raise UsageError(
        f"{checkpoint} has {length} prompts of {found.method} and {suffix}, so it is not known which "
        f"words stood between them and the class names; give --fixed-words '{words}' (with the published "
        "CTX_INIT), or --fixed-words '' for none"
    )


def _tokens(base: LoadedModel, words: str) -> list[int]:
    """Return the tokens of words, without start and end of text."""
    tokens_1T = base.tokenizer([words])
    end = int(text_parts(base.model).pool_positions(tokens_1T))
    tokens: list[int] = tokens_1T[0, 1:end].tolist()
    return tokens


def _text(base: LoadedModel, tokens: list[int]) -> str:
    decode = getattr(base.tokenizer, "decode", None)
    return f"'{decode(tokens).strip()}'" if decode else str(tokens)
