"""PromptedCLIP: a frozen open_clip model with prompts in its towers and the interface of open_clip's CLIP.

Initialises prompts, makes tokens of names, and selects what is stored. `towers.py` runs the towers,
`stored.py` reads and writes files.

Shapes: B batch, C classes, D embedding, T tokens, n prompt length, W tower width.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from student_train.model import towers
from student_train.model.full_texts import FullTexts, lay_out_texts
from student_train.model.full_tower import encode_full_text
from student_train.model.hub import fetch_folder
from student_train.model.model_card import model_card
from student_train.model.packing import PackedTexts, pack_texts
from student_train.model.prompt_tokenizer import PromptedReading, PromptTokenizer
from student_train.model.prompts import INIT_STD, Prompts, unused_query_blocks
from student_train.model.settings import PromptSettings, Tower
from student_train.model.stored import (
    ImportRecord,
    StoredStudent,
    StudentRecord,
    read_student,
    write_folder,
    write_student,
)
from student_train.model.text_frame import TextFrame, text_frame
from student_train.model.text_plan import TextPlan, plan_texts
from student_train.model.vision_check import check_vision_tower
from student_train.model.vision_towers import vision_parts
from student_train.runs.record import STUDENT
from teacher_cache.classes.templates import prompted_text
from teacher_cache.compat.dynamo import require_compiler
from teacher_cache.conventions import ConventionOptions, Conventions, recorded_conventions
from teacher_cache.errors import UnsupportedTowerError, UsageError
from teacher_cache.files.places import local_path
from teacher_cache.indices import as_texts
from teacher_cache.teacher.compiled import compile_blocks
from teacher_cache.teacher.frozen_copy import frozen_copy
from teacher_cache.teacher.openclip import LoadedModel, load_model
from teacher_cache.teacher.registry import earlier_conventions
from teacher_cache.teacher.text_towers import text_parts

TOWERS: tuple[Tower, ...] = ("text", "vision")
Load = Callable[[str, str | None, torch.device | str, ConventionOptions | Conventions | None], LoadedModel]

log = logging.getLogger(__name__)


class PromptedCLIP(nn.Module, PyTorchModelHubMixin):
    """A student: a frozen CLIP whose only learnable parameters are prompts (RPP, arXiv 2409.06166).

    Attributes:
        base: the frozen model with its tokenizer and preprocessing.
        settings: settings of its prompts.
        prompts: `Prompts` by tower, "text" and "vision"; a tower without prompts is missing.
        provenance: how it was trained, as in `stored.StoredStudent`; None if it was not loaded.
        imported: the published checkpoint that its prompts come from; None for prompts of our own runs.
        text_memory: bytes of activations that the text tower may use; None: `text_plan.free_memory`.
        compiles: whether the towers' blocks run compiled, see `compile_towers`.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Skip the mixin's `__new__`, which would copy the frozen model into a configuration."""
        return nn.Module.__new__(cls)

    def __init__(self, base: LoadedModel, settings: PromptSettings, seed: int = 0) -> None:
        """Args:
        base: the model; its weights are frozen here.
        settings: towers, structure, carry, depth, length, first words.
        seed: seed of the random initial values.

        Raises:
            UnsupportedTowerError: a tower to be prompted does not support prompts.
            UsageError: the prompts are deeper or longer than the tower allows.
        """
        super().__init__()
        self.base, self.settings = base, settings
        self.provenance: dict[str, Any] | None = None
        self.imported: ImportRecord | None = None
        self.text_memory: int | None = None
        self.compiles = False
        self.clip = base.model.eval().requires_grad_(False)
        self.prompts = nn.ModuleDict()
        for number, tower in enumerate(TOWERS):
            if settings.towers not in ("both", tower):
                continue
            generator = torch.Generator().manual_seed(2 * seed + number)
            if depth := settings.depth_of(tower, len(self.blocks(tower))):
                first_nW = self._first_prompt(tower, generator)
                self.prompts[tower] = Prompts(settings, depth, first_nW, generator)
        self.prompts.to(self.logit_scale.device)
        if "vision" in self.prompts:
            check_vision_tower(self.clip.visual)

    def blocks(self, tower: Tower) -> Sequence[Any] | nn.ModuleList:
        """Return the blocks of a tower.

        Raises:
            UnsupportedTowerError: the tower does not support prompts.
        """
        if tower == "text":
            return text_parts(self.clip).blocks
        return vision_parts(self.clip.visual).blocks

    def _first_prompt(self, tower: Tower, generator: torch.Generator) -> Tensor:
        """Return the initial prompt of block 1, [n, W] float32."""
        n = self.settings.length_of(tower)
        if tower == "vision":
            width = vision_parts(self.clip.visual).width
            return INIT_STD * torch.randn(n, width, generator=generator)
        parts, start = text_parts(self.clip), self._prompts_start
        room = parts.context_length - start - 2  # one token of a name, EOT
        room -= len(self._word_tokens(self.settings.fixed_words))
        if n > room:
            behind = f" with --fixed-words '{self.settings.fixed_words}'" if self.settings.fixed_words else ""
            raise UsageError(
                f"prompt length {n} leaves no room for a name; the text tower holds at most {max(0, room)}"
                f"{behind}"
            )
        words_T = self._word_tokens(self.settings.prompt_init)[:n]
        embedding = parts.token_embedding.weight
        first_nW = INIT_STD * torch.randn(n, embedding.shape[1], generator=generator)
        first_nW[: len(words_T)] = embedding[words_T.to(embedding.device)].cpu()  # random behind the words
        return first_nW + parts.positional_embedding[start : start + n].cpu()

    @cached_property
    def _frame(self) -> TextFrame:
        """What the tokenizer puts around a text."""
        return text_frame(self.base.tokenizer)

    @property
    def _prompts_start(self) -> int:
        """Position of the first text prompt: behind the start-of-text token, or in front if there is none.

        Raises:
            UnsupportedTowerError: the prompts would be at the pooled position.
        """
        parts = text_parts(self.clip)
        if parts.causal:
            return 1
        start = len(self._frame.start)
        if parts.pool == "first" and not start:
            raise UnsupportedTowerError(
                f"the text tower of {self.base.name} is pooled at its first position, but its tokenizer has "
                "no start-of-text token: text prompts would stand there"
            )
        return start

    def _word_tokens(self, words: str) -> Tensor:
        """Return the tokens of words without start and end of text, int64 [T]."""
        return self._frame.body(self.base.tokenizer([words])[0])

    @classmethod
    def from_stored(
        cls,
        stored: StoredStudent,
        model: str | None = None,
        pretrained: str | None = None,
        device: torch.device | str = "cpu",
        load: Load = load_model,
    ) -> Self:
        """Return a stored student in evaluation mode; the arguments are those of `load_student`.

        Raises:
            UsageError: the frozen model is not found or has other weights.
        """
        record = stored.record
        now_pretrained = pretrained if model else pretrained or record.pretrained
        try:
            base = load(model or record.model, now_pretrained, device, stored_conventions(stored))
        except UsageError as error:
            raise UsageError(
                f"cannot load the frozen model of the student {stored.path}: {error}; if it moved, give its "
                "new place with --model or --pretrained"
            ) from error
        student = cls(base, record.prompts)
        student.take_prompts(stored)
        student.provenance, student.imported = stored.provenance, record.imported
        return student.eval()

    def take_prompts(self, stored: StoredStudent) -> None:
        """Replace this student's prompts by those of a stored student.

        Raises:
            UsageError: they belong to another frozen model, or their shapes differ from this student's.
        """
        if self.base.digest != stored.record.weights_digest:
            raise UsageError(
                f"the student {stored.path} was trained on weights {stored.record.weights_digest}, but "
                f"{self.base.name} has {self.base.digest}"
            )
        trained = stored_conventions(stored)
        if trained is not None and (changed := trained.differ(self.base.conventions)):
            log.warning("the student %s was trained with %s", stored.path, "; ".join(changed))
        own = self.prompt_tensors()
        words = "text" in self.prompts and self.settings.fixed_words != stored.record.prompts.fixed_words
        if words or {n: x.shape for n, x in own.items()} != {n: x.shape for n, x in stored.tensors.items()}:
            differ = [
                f"--{name.replace('_', '-')} stored {_shown(theirs)}, requested "
                f"{_shown(getattr(self.settings, name))}"
                for name, theirs in stored.record.prompts
                if theirs != getattr(self.settings, name) and name != "prompt_init"
            ]
            if differ:
                raise UsageError(f"{stored.path} has prompts with different settings: {'; '.join(differ)}")
            names = ", ".join(sorted(stored.tensors))
            raise UsageError(f"{stored.path} does not have the prompts of its own settings, but {names}")
        for name, tensor in own.items():
            tensor.copy_(stored.tensors[name])

    def prompt_tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by 'TOWER.NAME': [J, n, W] or [n, W], float32, detached."""
        return {f"{t}.{n}": x for t, p in self.prompts.items() for n, x in cast(Prompts, p).tensors().items()}

    def describe(self) -> StudentRecord:
        """Return the record that is stored beside the tensors."""
        base = self.base
        return StudentRecord(
            prompts=self.settings,
            model=base.name,
            pretrained=base.pretrained,
            weights_digest=base.digest,
            imported=self.imported,
            conventions=base.conventions,
        )

    def train(self, mode: bool = True) -> "PromptedCLIP":
        """Set the training mode; the frozen towers stay in evaluation mode (no patch dropout)."""
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def logit_scale(self) -> Tensor:
        """Natural logarithm of the factor s, as in open_clip's CLIP: float32 scalar, frozen."""
        return cast(Tensor, self.clip.logit_scale)

    @property
    def logit_bias(self) -> Tensor | None:
        """The bias b of a sigmoid model, whose scores are sigmoid(s · f·w + b); None for others."""
        return cast(Tensor | None, getattr(self.clip, "logit_bias", None))

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The model's tokenizer. With text prompts, it reads a template's text as its class name."""
        prompts = self.tower_prompts("text")
        if prompts is None:
            return PromptTokenizer(self.base.tokenizer, None)
        reading = PromptedReading(
            self.tokenize_names, self._frame, positions=self.context_length - prompts.length
        )
        return PromptTokenizer(self.base.tokenizer, reading)

    @property
    def context_length(self) -> int:
        """Positions of the text tower, those of the prompts included."""
        return self.base.context_length

    def tower_prompts(self, tower: Tower) -> Prompts | None:
        """Return the prompts of a tower, or None."""
        return cast(Prompts, self.prompts[tower]) if tower in self.prompts else None

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Return image features [B, D].

        Args:
            images: float [B, 3, H, W], from the model's preprocessing.
            normalize: whether the features get unit length.
        """
        prompts = self.tower_prompts("vision")
        if prompts is None:
            features: Tensor = self.clip.encode_image(images, normalize=False)
        else:
            features = towers.encode_image(self.clip.visual, prompts, images, compile_blocks=self.compiles)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor | PackedTexts | FullTexts, normalize: bool = False) -> Tensor:
        """Return text features [B, D].

        Args:
            tokens: integers [B, T] from `tokenizer` or `tokenize_names`, on any device, or the result of
                `pack_texts`. The prompts are inserted behind the start-of-text token, or in front if the
                tokenizer has none.
            normalize: whether the features get unit length.

        Raises:
            UsageError: not tokens, or a text leaves no room for the prompts.
        """
        texts = (
            tokens
            if isinstance(tokens, PackedTexts | FullTexts)
            else self._tokens(tokens, self.logit_scale.device)
        )
        prompts = self.tower_prompts("text")
        if isinstance(texts, Tensor) and (prompts is not None or self._has_causal_text()):
            texts = self._laid_out(texts)
        if isinstance(texts, Tensor):  # without prompts, any text tower works
            features: Tensor = self.clip.encode_text(texts, normalize=False)
        else:
            plan, parts = self.plan_texts(texts), text_parts(self.clip)
            if isinstance(texts, PackedTexts):
                features = towers.encode_text(parts, prompts, texts, plan, compile_blocks=self.compiles)
            else:
                features = encode_full_text(parts, prompts, texts, plan, compile_blocks=self.compiles)
        return F.normalize(features, dim=-1) if normalize else features

    def _has_causal_text(self) -> bool:
        try:
            return text_parts(self.clip).causal
        except UnsupportedTowerError:
            return False

    def _laid_out(self, tokens_BT: Tensor) -> PackedTexts | FullTexts:
        parts, prompts = text_parts(self.clip), self.tower_prompts("text")
        length = prompts.length if prompts else 0
        if parts.causal:
            return pack_texts(parts, tokens_BT, length)
        return lay_out_texts(parts, tokens_BT, length, self._frame)

    def keep_half_weights(self, dtype: torch.dtype) -> None:
        """Keep the towers' weights in half precision; from now on the towers run under autocast to it only.

        Features and gradients are those of autocast, which otherwise makes this copy in each call. The
        float32 weights are freed if nothing else has them.
        """
        parts = [self.clip.visual]
        if self.tower_prompts("vision") is not None:  # pooling then runs without autocast
            parts = [getattr(block, "module", block) for block in vision_parts(self.clip.visual).blocks]
        with suppress(UnsupportedTowerError):
            parts.append(text_parts(self.clip).blocks)
        self.clip = frozen_copy(self.clip, self.logit_scale.device, dtype, parts)
        self.base = replace(self.base, model=self.clip)

    def compile_towers(self) -> None:
        """Run the towers' blocks compiled from now on; each kind is compiled when it runs first.

        Raises:
            UsageError: torch.compile does not work on this machine.
        """
        require_compiler(self.logit_scale.device)
        self.compiles = True
        if self.tower_prompts("vision") is None:
            self.clip = frozen_copy(self.clip, self.logit_scale.device)
            compile_blocks(self.clip.visual)
            self.base = replace(self.base, model=self.clip)

    def _tokens(self, tokens: Any, device: torch.device) -> Tensor:
        """Return the tokens of a tensor, array or list as a tensor on a device."""
        found = None
        with suppress(TypeError, ValueError, RuntimeError):
            found = torch.as_tensor(tokens)
        if found is None or found.ndim != 2 or found.is_floating_point() or found.dtype == torch.bool:
            what = type(tokens).__name__ if found is None else f"{found.dtype} of shape {list(found.shape)}"
            raise UsageError(
                f"expected tokens, integers [B, T], found {what}; make them with tokenizer, or with "
                "tokenize_names of class names"
            )
        return found.to(device, torch.int32 if found.dtype == torch.int32 else torch.int64)

    def plan_texts(self, texts: PackedTexts | FullTexts) -> TextPlan:
        """Return how the text tower runs these texts in `text_memory`, under the current autocast."""
        return plan_texts(text_parts(self.clip), texts, self.text_memory, self.tower_prompts("text"))

    def pack_texts(self, tokens: Tensor, device: torch.device | None = None) -> PackedTexts | FullTexts:
        """Prepare tokens int64 [B, T] for many calls of `encode_text`.

        Args:
            device: of the result; None: the model's.

        Raises:
            UnsupportedTowerError: the text tower supports only tokens.
            UsageError: as `encode_text`.
        """
        packed = self._laid_out(self._tokens(tokens, torch.device("cpu")))
        return packed.to(device or self.logit_scale.device)

    def forward(
        self, image: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return unit image and text features [B, D] and the factor s, like open_clip's CLIP.

        Features without an input are None: open_clip's own zero-shot evaluation passes only images.
        """
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        return image_features, text_features, self.logit_scale.exp()

    def tokenize_names(self, names: Iterable[str]) -> Tensor:
        """Return tokens int64 [C, T] of 'NAME.' for each class name, with room for the prompts (as in CoOp).

        `fixed_words` precede the name; without text prompts, `prompt_init` does. A name that is too long
        loses its last tokens before the full stop; a warning reports how many names did.

        Args:
            names: a list, tuple, array or other iterable of texts.

        Raises:
            UsageError: a single text, something that is not a text, or no name.
        """
        names = as_texts(names, "class names")
        prompts = self.tower_prompts("text")
        words = self.settings.fixed_words if prompts else self.settings.prompt_init
        tokens_CT = self.base.tokenizer([prompted_text(name, words) for name in names])
        length = self.context_length - (prompts.length if prompts else 0)
        try:
            text_parts(self.clip)
            frame = self._frame
        except UnsupportedTowerError:
            return tokens_CT
        lengths_C = frame.lengths(tokens_CT)
        # The tokenizer truncates at the context length: a text that fills it may have lost its full stop.
        long_C = (lengths_C > length) | (lengths_C >= self.context_length)
        if long_C.any():
            log.warning(
                "%d of %d class names are too long for the text tower and are truncated",
                long_C.sum(),
                len(names),
            )
            full_stop = self._word_tokens(".")[-1:].tolist()  # none in a tokenizer without punctuation
            last = torch.tensor([*full_stop, *(frame.end or [frame.pad])])
            tokens_CT[long_C, length:] = frame.pad
            tokens_CT[long_C, length - len(last) : length] = last
        return tokens_CT

    @torch.no_grad()
    def class_features(self, names: Iterable[str]) -> Tensor:
        """Return unit class features [C, D] of class names, without gradients.

        Raises:
            UsageError: as `tokenize_names`.
        """
        return self.encode_text(self.tokenize_names(names).to(self.logit_scale.device), normalize=True)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin accepts any argument, also misspelled ones
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        model: str | None = None,
        pretrained: str | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a student from a folder that `save_pretrained` wrote, or from Hugging Face's hub.

        Args:
            pretrained_model_name_or_path: the folder, or 'ORG/REPO'.
            force_download, token, cache_dir, local_files_only, revision: as the hub's own `from_pretrained`.
            model, pretrained, device: as for `load_student`; needed if the frozen model was a folder or a
                weights file on another machine.

        Raises:
            UsageError: no student there, files that are damaged or disagree, or a frozen model with other
                weights.
            RppError: it could not be fetched.
        """
        # The mixin's own method would read arguments of the class from `config.json`.
        folder = local_path(pretrained_model_name_or_path)
        if not os.path.isdir(folder):
            repository = str(pretrained_model_name_or_path)
            folder = fetch_folder(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return cls.from_stored(read_student(folder), model, pretrained, device)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the prompts, never the frozen model, for `save_pretrained` and `push_to_hub`."""
        write_folder(save_directory, self.describe(), self.prompt_tensors(), self.provenance)

    def generate_model_card(self, figures: Sequence[Mapping[str, Any]] = ()) -> ModelCard:
        """Return the card that `save_pretrained` writes if there is none.

        Args:
            figures: evaluations as `rpp eval --json` prints them, from the argument
                `model_card_kwargs={"figures": [...]}` of `save_pretrained` and `push_to_hub`.
        """
        return model_card(self.describe(), self.provenance, figures)

    def describe_unused(self) -> list[str]:
        """Return a line for each tower with learnable query prompts that are never used."""
        lines = []
        for tower in TOWERS:
            prompts = self.tower_prompts(tower)
            if prompts is None or not prompts.q.requires_grad:
                continue
            unused = unused_query_blocks(self.settings, prompts.depth, len(self.blocks(tower)))
            if unused:
                blocks = f"block {unused[0]}" if len(unused) == 1 else f"blocks {unused[0]} to {unused[-1]}"
                lines.append(
                    f"{tower}: the query prompts of {blocks} (of {prompts.depth} prompted) are never used "
                    f"under carry {self.settings.carry}; their gradient is zero, only weight decay changes "
                    "them"
                )
        return lines


def _shown(value: object) -> object:
    return f"'{value}'" if value == "" or " " in str(value) else "its default" if value is None else value


def stored_conventions(stored: StoredStudent) -> Conventions | None:
    """Return the conventions of a student's frozen model; None if they are those of a folder or the hub.

    An earlier version recorded them only of the teacher, which usually is the same model, and otherwise chose
    those of the tag, or for a weights file those of the model's configuration.
    """
    record, trained = stored.record, stored.provenance
    if record.conventions is not None:
        return record.conventions
    is_teacher = trained is not None and trained["teacher"]["weights_digest"] == record.weights_digest
    if trained and is_teacher and (recorded := recorded_conventions(trained["teacher"])):
        return recorded
    return None if record.pretrained is None else earlier_conventions(record.model, record.pretrained)


def save_student(student: PromptedCLIP, folder: Path) -> Path:
    """Write the prompts and their record as `student.safetensors`, completely or not at all.

    Returns:
        The file.

    Raises:
        RppError: it cannot be written, for example because the disk is full.
    """
    return write_student(folder / STUDENT, student.describe(), student.prompt_tensors())


def load_student(
    path: str | Path,
    model: str | None = None,
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
    load: Load = load_model,
) -> PromptedCLIP:
    """Load a student that `rpp-train` or `save_pretrained` has written.

    Args:
        path: a run's folder, a folder in Hugging Face's layout, or a safetensors file of either.
        model: open_clip's name or the folder of the frozen model, if it differs from that at training.
        pretrained: its tag or weights file, if it differs.
        device: device of the student.
        load: loads the frozen model; with a function that caches, students share it.

    Returns:
        The student in evaluation mode.

    Raises:
        UsageError: no student there, a file that is not a student, or a frozen model with other weights.
    """
    return PromptedCLIP.from_stored(read_student(path), model, pretrained, device, load)
