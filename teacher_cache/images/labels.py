"""Labels: what a source says of a sample, and which class of the vocabulary that is.

The rules are in docs/images.md.
"""

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from teacher_cache.errors import UsageError
from teacher_cache.vocabulary import Vocabulary

LABEL_KEYS = ("label", "cls", "class_id", "class", "synset", "wnid", "class_name")
SYNSET = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")


def read_label(content: bytes, suffix: str, where: str) -> tuple[int | None, str | None]:
    try:
        text: Any = content.decode().strip()
        if suffix == ".json":
            record = json.loads(text)
            text = next((record[key] for key in LABEL_KEYS if key in record), None)
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise UsageError(f"{where}: label is not readable ({error})") from error
    if text is None or text == "":
        return None, None
    if re.fullmatch(r"-?\d+", str(text)):
        if int(text) >= 1 << 31:
            raise UsageError(f"{where}: the label {text} is no class index")
        return max(int(text), -1), None
    return None, str(text)


def resolve_labels(raw: pa.Table, vocabulary: Vocabulary, source: str) -> tuple[NDArray[np.int32], list[str]]:
    """Class indices from what the source calls the classes; the rule is in docs/images.md."""
    notes: list[str] = []
    indices = raw["label_index"].fill_null(-1).to_numpy().astype(np.int32)
    if indices.max(initial=-1) >= len(vocabulary):
        raise UsageError(
            f"the labels of '{source}' go up to {indices.max()}, but the vocabulary has {len(vocabulary)} "
            f"classes (0 to {len(vocabulary) - 1}): another vocabulary is needed"
        )
    encoded = raw["label_name"].combine_chunks().dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    if names:
        found = [vocabulary.index_of(name) for name in names]
        if all(index is None for index in found):
            if len(names) != len(vocabulary):
                raise UsageError(
                    f"'{source}' has {len(names)} classes ({', '.join(sorted(names)[:3])}, ...), the "
                    f"vocabulary {len(vocabulary)} ({', '.join(vocabulary.ids[:3])}, ...), and no id or "
                    "name is in both"
                )
            found = [sorted(names).index(name) for name in names]
            notes.append("class folders were matched to the vocabulary by sorted order, as torchvision does")
        unknown = [name for name, index in zip(names, found, strict=True) if index is None]
        by_code = np.array([-1 if index is None else index for index in found], dtype=np.int32)
        codes = encoded.indices.fill_null(-1).to_numpy()
        indices = np.where(codes >= 0, by_code[codes], indices)
        if unknown:
            count = int(np.isin(codes, [names.index(name) for name in unknown]).sum())
            notes.append(
                f"{count} samples of {len(unknown)} classes outside the vocabulary ({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}) have no hard label"
            )
    if (indices < 0).all():
        notes.append("no sample has a hard label")
    absent = len(vocabulary) - len(np.unique(indices[indices >= 0]))
    if absent and absent < len(vocabulary):
        notes.append(f"{absent} of {len(vocabulary)} classes have no sample")
    return indices.astype(np.int32), notes
