"""Compare what a published checkpoint stores of its frozen model with the model given.

Dassl stores the complete model for methods that prompt inside the towers, and buffers of the class texts for
all. `methods.py` decides which tensors these are.

Shapes: C classes, T tokens behind the prompts, W text width.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from student_train.interchange.checkpoint_state import first_names, is_dense
from teacher_cache.errors import UsageError
from teacher_cache.teacher.openclip import LoadedModel
from teacher_cache.teacher.text_towers import text_parts

# Largest norm of a difference, relative to the tensor: float16, and PromptSRC's mean of the weights over its
# epochs in float16. Other weights of the same shape differ by about 1.4.
TOLERANCE = 0.02
MOST_WORDS = 16  # tokens between prompts and class name that are looked for


def check_frozen_weights(checkpoint: Path, base: LoadedModel, frozen: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint with weights that the model does not have, or has with other values.

    Raises:
        UsageError: which weights.
    """
    own = base.model.state_dict()
    unknown, other = [], []
    for name, tensor in frozen.items():
        places = [place for place in _places(name) if place in own]
        if not places:
            unknown.append(name)
        elif not _equal(tensor, own[places[0]]):
            other.append(name)
    if other or unknown:
        what = f"{len(other)} differ ({first_names(other)})" if other else ""
        more = f"{len(unknown)} are unknown ({first_names(unknown)})" if unknown else ""
        raise UsageError(
            f"{checkpoint} has other weights of the frozen model than {base.name}: of {len(frozen)} tensors "
            f"{' and '.join(filter(None, (what, more)))}; the prompts were trained on another model: give it "
            "with --model and --pretrained"
        )


def _places(name: str) -> tuple[str, ...]:
    """Return the names that an open_clip model may have for a weight of OpenAI's code."""
    room, _, rest = name.partition(".")
    return {
        "image_encoder": (f"visual.{rest}",),
        "ZS_image_encoder": (f"visual.{rest}",),
        "text_encoder": (rest, f"text.{rest}"),
    }.get(room, (name,))


def _equal(found: Tensor, own: Tensor) -> bool:
    if found.shape != own.shape or not is_dense(found):
        return False
    found, own = found.detach().float(), own.detach().cpu().float()
    return bool((found - own).norm() <= TOLERANCE * own.norm())


def other_class_tokens(base: LoadedModel, class_tokens: Mapping[str, Tensor]) -> list[str]:
    """Return the names of stored class texts that do not consist of the model's token embeddings.

    `token_prefix` [C, 1, W] is the start of text, and the last row of `token_suffix` [C, T, W] the padding.
    """
    embedding = text_parts(base.model).token_embedding.weight
    tokens_T = base.tokenizer([""])[0]
    ends = {"prefix": int(tokens_T[0]), "suffix": int(tokens_T[-1])}
    return [
        name
        for name, x_CTW in class_tokens.items()
        if not _is_texts(x_CTW, embedding.shape[1])
        or not _equal(x_CTW[0, -1], embedding[ends[name.rpartition("_")[2]]])
    ]


def words_before_names(base: LoadedModel, class_tokens: Mapping[str, Tensor]) -> list[int] | None:
    """Return the tokens with which all stored class texts begin behind the prompts; None if unknown."""
    embedding = text_parts(base.model).token_embedding.weight.detach().cpu().float()
    suffix = next((x for name, x in class_tokens.items() if name.endswith("suffix")), None)
    if suffix is None or not _is_texts(suffix, embedding.shape[1]):
        return None
    tokens: list[int] = []
    for position in range(min(MOST_WORDS, suffix.shape[1])):
        first_W = suffix[0, position].detach().float()
        if not (suffix[:, position] == suffix[0, position]).all():
            break
        token = int((embedding - first_W).norm(dim=1).argmin())
        if not _equal(first_W, embedding[token]):
            return None
        tokens.append(token)
    return tokens


def _is_texts(x_CTW: Tensor, width: int) -> bool:
    return x_CTW.dim() == 3 and 0 not in x_CTW.shape and x_CTW.shape[2] == width and is_dense(x_CTW)
