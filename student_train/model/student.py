"""PromptedCLIP: a frozen open_clip model with prompts in its towers, used as one uses open_clip's CLIP.

Knows how prompts begin, how names become tokens, and what of a student is stored. How the towers run is in
`towers.py`, how files look in `stored.py`.

Shapes: B batch, C classes, D embedding, T tokens, n prompt length, W tower width.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from student_train.model import towers
from student_train.model.hub import fetch_folder
from student_train.model.model_card import model_card
from student_train.model.packing import PackedTexts, pack_texts
from student_train.model.prompt_tokenizer import PromptedReading, PromptTokenizer
from student_train.model.prompts import INIT_STD, Prompts, dead_query_blocks
from student_train.model.settings import PromptSettings, Tower
from student_train.model.stored import StoredStudent, StudentRecord, read_student, write_folder, write_student
from student_train.runs.record import STUDENT
from teacher_cache.classes.templates import prompted_text
from teacher_cache.errors import UnsupportedTowerError, UsageError
from teacher_cache.teacher.openclip import LoadedModel, load_model, vision_transformer
from teacher_cache.teacher.text_towers import TextParts, text_parts

log = logging.getLogger(__name__)


class PromptedCLIP(nn.Module, PyTorchModelHubMixin):
    """A student: the frozen CLIP and, as its only learnable parameters, the prompts.

    Attributes:
        base: the frozen model with its tokenizer and preprocessing.
        settings: what prompts it has.
        prompts: `Prompts` by tower, "text" and "vision"; a tower without prompts is missing.
        provenance: how it was trained, as `stored.StoredStudent` has it; None for one that was not loaded.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Not the mixin's, which would make a configuration of the arguments by copying the frozen model."""
        return nn.Module.__new__(cls)

    def __init__(self, base: LoadedModel, settings: PromptSettings, seed: int = 0) -> None:
        """Args:
        base: the model; its weights are frozen here.
        settings: towers, structure, carry, depth, length, first words.
        seed: of the random initial values.

        Raises:
            UnsupportedTowerError: a tower that is to be prompted is not one that can be.
            UsageError: a prompt depth or length that the tower has no room for.
        """
        super().__init__()
        self.base, self.settings = base, settings
        self.provenance: dict[str, Any] | None = None
        self.clip = base.model.eval().requires_grad_(False)
        self.prompts = nn.ModuleDict()
        device = self.logit_scale.device
        if settings.towers != "vision":
            parts = text_parts(self.clip)
            if depth := settings.depth_of("text", len(parts.blocks)):
                generator = torch.Generator().manual_seed(2 * seed)
                first_nW = self._first_text_prompt(parts, generator)
                self.prompts["text"] = Prompts(settings, depth, first_nW, generator)
        if settings.towers != "text":
            visual = vision_transformer(self.clip)
            if depth := settings.depth_of("vision", len(visual.transformer.resblocks)):
                generator = torch.Generator().manual_seed(2 * seed + 1)
                width = visual.class_embedding.shape[0]
                first_nW = INIT_STD * torch.randn(settings.prompt_length, width, generator=generator)
                self.prompts["vision"] = Prompts(settings, depth, first_nW, generator)
        self.prompts.to(device)

    def _first_text_prompt(self, parts: TextParts, generator: torch.Generator) -> Tensor:
        """Embeddings of the settings' first words at positions 1..n, random ones behind them; [n, W]."""
        n = self.settings.prompt_length
        room = parts.positional_embedding.shape[0] - 3  # SOT, one token of a name, EOT
        if n > room:
            raise UsageError(
                f"prompt length {n} leaves no room for a name; the text tower holds at most {room}"
            )
        tokens_T = self.base.tokenizer([self.settings.prompt_init])[0]
        words_T = tokens_T[1 : int(parts.pool_positions(tokens_T[None]))][:n]
        embedding = parts.token_embedding.weight
        first_nW = INIT_STD * torch.randn(n, embedding.shape[1], generator=generator)
        first_nW[: len(words_T)] = embedding[words_T.to(embedding.device)].cpu()
        return first_nW + parts.positional_embedding[1 : 1 + n].cpu()

    @classmethod
    def from_stored(
        cls,
        stored: StoredStudent,
        model: str | None = None,
        pretrained: str | None = None,
        device: torch.device | str = "cpu",
        load: Callable[[str, str | None, torch.device | str], LoadedModel] = load_model,
    ) -> Self:
        """A student as `read_student` found it, in evaluation mode; the arguments are `load_student`'s.

        Raises:
            UsageError: a frozen model that is not there or has other weights.
        """
        record = stored.record
        now_pretrained = pretrained if model else pretrained or record.pretrained
        try:
            base = load(model or record.model, now_pretrained, device)
        except UsageError as error:
            raise UsageError(
                f"the frozen model of the student {stored.path}: {error}; if it moved, say where it is now "
                "with --model or --pretrained"
            ) from error
        student = cls(base, record.prompts)
        student.take_prompts(stored)
        student.provenance = stored.provenance
        return student.eval()

    def take_prompts(self, stored: StoredStudent) -> None:
        """Take a stored student's prompts in place of one's own.

        Raises:
            UsageError: they belong to another frozen model, or are others than this student's settings say.
        """
        if self.base.digest != stored.record.weights_digest:
            raise UsageError(
                f"the student {stored.path} was trained on weights {stored.record.weights_digest}, but "
                f"{self.base.name} has {self.base.digest}"
            )
        own = self.prompt_tensors()
        if {n: x.shape for n, x in own.items()} != {n: x.shape for n, x in stored.tensors.items()}:
            differ = [
                f"--{name.replace('_', '-')} {theirs} there, {getattr(self.settings, name)} here"
                for name, theirs in stored.record.prompts
                if theirs != getattr(self.settings, name) and name != "prompt_init"
            ]
            raise UsageError(
                f"{stored.path} holds other prompts than are asked for: {'; '.join(differ)}"
                if differ
                else f"{stored.path} does not hold the prompts that its settings name: "
                f"{', '.join(sorted(stored.tensors))}"
            )
        for name, tensor in own.items():
            tensor.copy_(stored.tensors[name])

    def prompt_tensors(self) -> dict[str, Tensor]:
        """What has to be stored, by 'TOWER.NAME', each tensor once."""
        return {f"{t}.{n}": x for t, p in self.prompts.items() for n, x in cast(Prompts, p).tensors().items()}

    def describe(self) -> StudentRecord:
        """What this student is, beside its tensors."""
        base = self.base
        return StudentRecord(
            prompts=self.settings, model=base.name, pretrained=base.pretrained, weights_digest=base.digest
        )

    def train(self, mode: bool = True) -> "PromptedCLIP":
        """As any module's, but the frozen towers stay in evaluation mode (no dropout of patches)."""
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def logit_scale(self) -> Tensor:
        """Natural logarithm of s, as open_clip keeps it; frozen."""
        return cast(Tensor, self.clip.logit_scale)

    @property
    def tokenizer(self) -> PromptTokenizer:
        """open_clip's tokenizer of the model, for tools: with text prompts, what a template made is read as
        `tokenize_names` reads its name."""
        prompts = self.tower_prompts("text")
        if prompts is None:
            return PromptTokenizer(self.base.tokenizer, None)
        ends = text_parts(self.clip).pool_positions
        positions = self.context_length - prompts.length
        return PromptTokenizer(self.base.tokenizer, PromptedReading(self.tokenize_names, ends, positions))

    @property
    def context_length(self) -> int:
        """Positions of the text tower; the prompts take n of them."""
        return self.base.context_length

    def tower_prompts(self, tower: Tower) -> Prompts | None:
        """The prompts of one tower, or None."""
        return cast(Prompts, self.prompts[tower]) if tower in self.prompts else None

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Image features [B, D] of images [B, 3, H, W], normalised as the model's preprocessing does."""
        prompts = self.tower_prompts("vision")
        if prompts is None:
            features: Tensor = self.clip.encode_image(images)
        else:
            features = towers.encode_image(self.clip.visual, prompts, images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor | PackedTexts, normalize: bool = False) -> Tensor:
        """Text features [B, D] of tokens [B, T] int64, as `tokenizer` gives them.

        The prompts are put behind the start-of-text token. `pack_texts` prepares tokens for many calls.

        Raises:
            UsageError: a text has no room for the prompts; `tokenize_names` makes tokens that have.
        """
        try:
            parts = text_parts(self.clip)
        except UnsupportedTowerError:  # without prompts any text tower serves
            features: Tensor = self.clip.encode_text(tokens)
        else:
            features = towers.encode_text(parts, self.tower_prompts("text"), tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def pack_texts(self, tokens: Tensor) -> PackedTexts:
        """Tokens [B, T] prepared for `encode_text`, on the model's device: for texts that are encoded often.

        Raises:
            UnsupportedTowerError: a text tower that `encode_text` can only give tokens.
            UsageError: as `encode_text`.
        """
        prompts = self.tower_prompts("text")
        packed = pack_texts(text_parts(self.clip), tokens, prompts.length if prompts else 0)
        return packed.to(self.logit_scale.device)

    def forward(
        self, image: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Unit image features, unit text features and the factor s, as open_clip's CLIP returns them; None
        for what is not given (open_clip's own zero-shot evaluation gives images alone)."""
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        return image_features, text_features, self.logit_scale.exp()

    def tokenize_names(self, names: Sequence[str]) -> Tensor:
        """Tokens [C, T] int64 of 'NAME.' for each class name, with room for the prompts (as CoOp).

        Without text prompts `prompt_init` stands before the name. A name that is too long loses
        its last tokens before the full stop; how many names did is logged as a warning.
        """
        prompts = self.tower_prompts("text")
        words = "" if prompts else self.settings.prompt_init
        tokens_CT = self.base.tokenizer([prompted_text(name, words) for name in names])
        length = self.context_length - (prompts.length if prompts else 0)
        try:
            parts = text_parts(self.clip)
        except UnsupportedTowerError:
            return tokens_CT
        ends_C = parts.pool_positions(tokens_CT)
        # The tokenizer itself cuts at the context length: a text that fills it may have lost its full stop.
        long_C = (ends_C >= length) | (ends_C == self.context_length - 1)
        if long_C.any():
            log.warning(
                "%d of %d class names are too long for the text tower and are cut", long_C.sum(), len(names)
            )
            full_stop, end = self.base.tokenizer(["."])[0, 1:3].tolist()
            tokens_CT[long_C, length - 2 :] = 0
            tokens_CT[long_C, length - 2] = full_stop
            tokens_CT[long_C, length - 1] = end
        return tokens_CT

    @torch.no_grad()
    def class_features(self, names: Sequence[str]) -> Tensor:
        """Unit class features [C, D] of class names."""
        return self.encode_text(self.tokenize_names(names).to(self.logit_scale.device), normalize=True)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin takes any argument, a misspelled one as well
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
            model, pretrained, device: as for `load_student`; a frozen model that was a folder or a weights
                file on another machine has to be named.

        Raises:
            UsageError: no student there, files that are damaged or disagree, or a frozen model with other
                weights.
            RppError: it could not be fetched.
        """
        # The mixin's own way here reads arguments of the class from `config.json`; ours come from the file.
        return cls._from_pretrained(
            model_id=str(pretrained_model_name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            model=model,
            pretrained=pretrained,
            device=device,
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        model: str | None = None,
        pretrained: str | None = None,
        device: torch.device | str = "cpu",
        **fetching: Any,
    ) -> Self:
        folder = Path(model_id) if os.path.isdir(model_id) else fetch_folder(model_id, **fetching)
        return cls.from_stored(read_student(folder), model, pretrained, device)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` and `push_to_hub` write: the prompts, never the frozen model."""
        write_folder(save_directory, self.describe(), self.prompt_tensors(), self.provenance)

    def generate_model_card(self, figures: Sequence[Mapping[str, Any]] = ()) -> ModelCard:
        """The card that `save_pretrained` writes where there is none yet.

        Args:
            figures: evaluations, as `rpp eval --json` prints them; `model_card_kwargs={"figures": [...]}` of
                `save_pretrained` and `push_to_hub`.
        """
        return model_card(self.describe(), self.provenance, figures)

    def describe_dead(self) -> list[str]:
        """One line a tower about query prompts that nothing reads and that therefore learn nothing."""
        lines = []
        for name in self.prompts:
            prompts = cast(Prompts, self.prompts[name])
            if not prompts.q.requires_grad:  # frozen: nothing of it was to learn, and nothing moves it
                continue
            tower: Any = (
                text_parts(self.clip).blocks if name == "text" else self.clip.visual.transformer.resblocks
            )
            dead = dead_query_blocks(self.settings, prompts.depth, len(tower))
            if dead:
                blocks = f"block {dead[0]}" if len(dead) == 1 else f"blocks {dead[0]} to {dead[-1]}"
                lines.append(
                    f"{name}: nothing reads the query prompts of {blocks} (of {prompts.depth} prompted) "
                    f"under carry {self.settings.carry}; their gradient is zero, weight decay alone moves "
                    "them"
                )
        return lines


def save_student(student: PromptedCLIP, folder: Path) -> Path:
    """Write the prompts and what they belong to as `student.safetensors`, complete or not at all.

    Raises:
        RppError: it cannot be written, as on a full disk.
    """
    return write_student(folder / STUDENT, student.describe(), student.prompt_tensors())


def load_student(
    path: str | Path,
    model: str | None = None,
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
    load: Callable[[str, str | None, torch.device | str], LoadedModel] = load_model,
) -> PromptedCLIP:
    """Load a student that `rpp-train` or `save_pretrained` has written.

    Args:
        path: a run's folder, one of Hugging Face's layout, or a safetensors file of either.
        model: where the frozen model is now, if not where it was at training.
        pretrained: its tag or weights file now, likewise.
        device: where the student goes.
        load: loads the frozen model; one that keeps what it has loaded lets students share it.

    Raises:
        UsageError: no student there, a file that is none, or a frozen model with other weights.
    """
    return PromptedCLIP.from_stored(read_student(path), model, pretrained, device, load)
