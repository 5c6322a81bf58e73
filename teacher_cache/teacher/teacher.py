"""The teacher: a frozen open_clip model that computes unit image features and unit class features.

Shapes: B batch, C classes, D embedding, T tokens, W text width.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import Precision
from teacher_cache.compat.dynamo import require_compiler
from teacher_cache.conventions import PREPROCESSING, Conventions, described, recorded_conventions
from teacher_cache.device_copies import DeviceCopies
from teacher_cache.errors import UnsupportedTowerError, UsageError
from teacher_cache.teacher.compiled import compile_blocks
from teacher_cache.teacher.cuda_graph import CudaGraph
from teacher_cache.teacher.frozen_copy import frozen_copy
from teacher_cache.teacher.openclip import LoadedModel, load_model
from teacher_cache.teacher.registry import earlier_choice
from teacher_cache.teacher.text_towers import TextParts, text_parts
from teacher_cache.views import ViewRenderer, normalise

log = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA if it is available, else the CPU.

    Raises:
        UsageError: the device is not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ["cpu"]
    if torch.cuda.is_available():
        known += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if device not in known:
        raise UsageError(f"device '{device}' is not available; available: {', '.join(known)} (or auto)")
    return torch.device(device)


class Teacher:
    """The teacher on one device: pixels and names to unit features, without gradients.

    Attributes:
        model: the model on the device. In half precision it is a copy of `loaded.model`, whose image encoder
            has its weights in that type.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: Precision = "fp32") -> None:
        self.loaded = loaded
        self.device = device
        self.precision = precision
        if dtype := AUTOCAST.get(precision):
            self.model = frozen_copy(loaded.model, device, dtype, [loaded.model.visual])
        else:
            self.model = loaded.model.to(device)
        self._copies = DeviceCopies(device)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._compiled_batch = 0
        self.renderer = ViewRenderer(loaded.preprocess)
        self._text: TextParts | None = None  # the tower's own `encode_text` then computes all positions
        with suppress(UnsupportedTowerError):
            parts = text_parts(self.model)
            if parts.causal and parts.class_token is None:  # otherwise something reads what is behind a text
                self._text = parts

    @property
    def logit_scale(self) -> float:
        """The factor s of the teacher's logits."""
        return self.loaded.logit_scale

    @property
    def image_tower(self) -> str:
        """A name that is equal for teachers with equal image features."""
        return image_tower(self.loaded.digest, self.precision, self.loaded.conventions)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @torch.inference_mode()
    def image_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return unit image features [B, D] float32 of uint8 pixels [B, 3, H, W]."""
        pixels = self._copies({"pixels": pixels_BCHW})["pixels"]
        if self._compiled is not None and len(pixels) == self._compiled_batch:
            return self._compiled(pixels)
        return self._features(self.model, pixels)

    def _features(self, model: Any, pixels: Tensor) -> Tensor:
        preprocess = self.loaded.preprocess
        with self._autocast():
            features = model.encode_image(normalise(pixels, preprocess.mean, preprocess.std))
        return F.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def compile(self, batch_size: int) -> float:
        """Compile the image encoder for batches of this size; on CUDA, record it as a graph.

        Smaller batches, such as the last one of a part, run uncompiled. Features differ from uncompiled ones
        by rounding.

        Returns:
            Seconds that it took; 0 if that size is compiled already.

        Raises:
            UsageError: torch.compile does not work on this machine.
        """
        if batch_size == self._compiled_batch:
            return 0.0
        started = time.perf_counter()
        require_compiler(self.device)
        model = frozen_copy(self.model, self.device)
        compile_blocks(model.visual)
        height, width = self.renderer.size
        example = torch.zeros(batch_size, 3, height, width, dtype=torch.uint8, device=self.device)

        def features(pixels: Tensor) -> Tensor:
            return self._features(model, pixels)

        self._compiled = CudaGraph(features, example) if self.device.type == "cuda" else features
        self._compiled(example)
        self._compiled_batch = batch_size
        return time.perf_counter() - started

    @torch.inference_mode()
    def encode_text(self, tokens_BT: Tensor, normalize: bool = False) -> Tensor:
        """Return text features [B, D] float32, equal to those of the model's own `encode_text`.

        Positions behind the last end-of-text token are not computed: in a causal tower no feature depends on
        them.
        """
        with self._autocast():
            if self._text is None:
                features = self.model.encode_text(tokens_BT)
            else:
                features = _encode_trimmed(self._text, tokens_BT)
        return F.normalize(features.float(), dim=-1) if normalize else features.float()

    def class_features(self, vocabulary: Vocabulary, classes_per_batch: int = 256) -> Tensor:
        """Return unit class features [C, D] float32 on the CPU.

        As open_clip's zero-shot classifier: the mean over templates of unit text features, normalized. Logs a
        warning with the number of texts that the tokenizer cuts.
        """
        per_batch = max(1, classes_per_batch // len(vocabulary.templates))
        cut: list[str] = []
        pad = int(self.loaded.tokenizer([""])[0, -1])

        def tokenize(texts: list[str]) -> Tensor:
            tokens_BT = self.loaded.tokenizer(texts)
            # the last token of a text that fills all positions may be an end that is padding as well
            full = (tokens_BT[:, -2:] != pad).any(dim=1).nonzero()[:, 0].tolist()
            cut.extend(texts[row] for row in full if self._is_cut(texts[row], tokens_BT[row]))
            return tokens_BT

        weights_DC = open_clip.build_zero_shot_classifier(
            self,
            tokenize,
            vocabulary.names,
            vocabulary.templates,
            num_classes_per_batch=per_batch,
            device=self.device,
        )
        if cut:
            log.warning(
                "%d of %d texts are too long for the text tower and are cut, the first '%s'",
                len(cut),
                len(vocabulary) * len(vocabulary.templates),
                cut[0],
            )
        features: Tensor = weights_DC.T.float().contiguous().cpu()
        return features

    def _is_cut(self, text: str, tokens_T: Tensor) -> bool:
        """Return whether a text that fills all positions has more tokens."""
        longer: Tensor = self.loaded.tokenizer([text], context_length=len(tokens_T) + 1)[0, :-1]
        return not torch.equal(longer, tokens_T)

    def describe(self) -> dict[str, Any]:
        """Return what identifies this teacher, as a cache records it."""
        preprocess = self.loaded.preprocess
        return {
            "model": self.loaded.name,
            "pretrained": self.loaded.pretrained,
            "weights_digest": self.loaded.digest,
            "image_size": list(self.renderer.size),
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize_mode,
            "logit_scale": self.loaded.logit_scale,
            "logit_bias": self.loaded.logit_bias,
            "precision": self.precision,
            "quick_gelu": self.loaded.config["quick_gelu"],
            "conventions_from": self.loaded.conventions.source,
        }


def image_tower(weights_digest: str, precision: Precision, conventions: Conventions | None) -> str:
    """Return a name that is equal for teachers with equal image features."""
    fields = {} if conventions is None else {name: conventions.fields[name] for name in PREPROCESSING}
    return "; ".join(filter(None, [f"{weights_digest} in {precision}", described(fields)]))


def recorded_teacher(
    record: dict[str, Any], model: str | None = None, pretrained: str | None = None, device: str = "auto"
) -> Teacher:
    """Load the teacher that a cache was made with, with its conventions.

    Args:
        record: the result of `Teacher.describe`.
        model, pretrained: where its weights are now, if they moved.
        device: as for `choose_device`.

    Raises:
        UsageError: it cannot be loaded, or has other weights now.
    """
    if model is None:
        model, pretrained = record["model"], pretrained or record["pretrained"]
    try:
        loaded = load_model(model, pretrained, conventions=recorded_conventions(record))
    except UsageError as error:
        raise UsageError(
            f"the cache's teacher: {error}; if it moved, name its new place with --teacher (and --pretrained)"
        ) from error
    if warning := earlier_choice(record, loaded.conventions):
        log.warning(warning)
    if loaded.digest != record["weights_digest"]:
        raise UsageError(
            f"{loaded.name} has weights {loaded.digest}, the cache was made with {record['weights_digest']}; "
            "name those weights with --teacher and --pretrained"
        )
    return Teacher(loaded, choose_device(device), record["precision"])


def _encode_trimmed(parts: TextParts, tokens_BT: Tensor) -> Tensor:
    assert parts.attn_mask is not None
    positions_B = parts.pool_positions(tokens_BT)
    length = int(positions_B.max()) + 1
    x_BTW = parts.token_embedding(tokens_BT[:, :length]) + parts.positional_embedding[:length]
    mask = parts.attn_mask[:length, :length]
    for block in parts.blocks:
        x_BTW = block(x_BTW, attn_mask=mask)
    pooled_BW = parts.ln_final(x_BTW[torch.arange(len(x_BTW), device=x_BTW.device), positions_B])
    return parts.project(pooled_BW)
