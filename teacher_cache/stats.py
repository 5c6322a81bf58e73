"""Accuracy, entropy and confusions of the teacher, computed block by block over a cache.

Shapes: B rows, C classes, T temperatures.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.indices import as_number
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.store.header import CHUNK_ROWS

BLOCKS_AT_ONCE = 2  # one is read while the other is computed; torch uses all cores


def teacher_statistics(
    cache: TeacherCache | str | os.PathLike[str],
    temperatures: Sequence[float],
    view: int = 0,
    sample: int | None = None,
    seed: int = 0,
    pairs: int = 10,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> dict[str, Any]:
    """Return statistics of the teacher's soft labels over the rows whose image could be read.

    Blocks of rows, one chunk of the store each, go through dask.array. Memory holds the logits of a few
    hundred rows and 8 bytes for each row that the teacher classified wrongly.

    Args:
        cache: the cache, or its path or URL.
        temperatures: temperatures for the entropy; accuracy does not depend on them.
        sample: number of random rows, drawn with `seed`; all rows if None.
        pairs: number of most confused pairs to return.
        on_rows: called with the number of rows of each finished block, from several threads.

    Returns:
        rows; labelled (those with a hard label); top1 and top5 (shares of the labelled rows, None without
        any); temperatures: a list of temperature, entropy (mean over rows, in nats) and effective_classes
        (exponential of that mean); confused: a list of label, predicted (class indices), label_name,
        predicted_name, label_id, predicted_id and count, most frequent first; names may be shared by
        classes, ids are not.

    Raises:
        UsageError: no temperature, or one outside the encoding's range; no such view; no readable row.
    """
    cache = cache if isinstance(cache, TeacherCache) else open_cache(cache)
    try:
        temperatures = [as_number(temperature, "temperature") for temperature in temperatures]
    except TypeError:  # a single one
        temperatures = [as_number(temperatures, "temperature")]
    if not temperatures:
        raise UsageError("no temperature given for the statistics")
    for temperature in temperatures:
        cache.encoding.require_temperature(temperature)
    view = cache.require_view(view)
    rows = sample_rows(cache, sample, seed)
    # blocks end where chunks of the store end, so that each chunk is read once
    sizes = np.unique(rows // CHUNK_ROWS, return_counts=True)[1]
    record = [("top1", "i8"), ("hit1", "?"), ("hit5", "?"), ("entropy", "f8", (len(temperatures),))]

    @torch.inference_mode()
    def block_statistics(block: NDArray[np.int64]) -> NDArray[Any]:
        result = np.empty(len(block), dtype=record)
        labels = torch.from_numpy(cache.labels[block].astype(np.int64))
        for at, stored in cache.stored_pieces(block, view):
            for t, temperature in enumerate(temperatures):
                logits_BC = cache.finite(cache.encoding.logits(stored, cache.head, temperature))
                result["entropy"][at, t] = entropy(logits_BC / temperature).numpy()
            best = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
            hits = best == labels[at, None]
            result["top1"][at] = best[:, 0].numpy()
            result["hit1"][at], result["hit5"][at] = hits[:, 0].numpy(), hits.any(dim=1).numpy()
        on_rows(len(block))
        return result

    labels = da.from_array(cache.labels[rows].astype(np.int64), chunks=(tuple(sizes),))
    found = da.from_array(rows, chunks=(tuple(sizes),)).map_blocks(
        block_statistics, dtype=record, meta=np.empty(0, dtype=record)
    )
    wrong = (labels >= 0) & ~found["hit1"]
    codes = (labels * len(cache.vocabulary) + found["top1"])[wrong]
    hit1, hit5, entropies, confused = da.compute(
        found["hit1"].sum(),
        found["hit5"].sum(),
        found["entropy"].mean(axis=0),
        codes,
        scheduler="threads",
        num_workers=BLOCKS_AT_ONCE,
    )
    labelled = int((cache.labels[rows] >= 0).sum())
    return {
        "rows": len(rows),
        "labelled": labelled,
        "top1": int(hit1) / labelled if labelled else None,
        "top5": int(hit5) / labelled if labelled else None,
        "temperatures": [
            {"temperature": t, "entropy": float(mean), "effective_classes": float(np.exp(mean))}
            for t, mean in zip(temperatures, entropies, strict=True)
        ],
        "confused": _most_confused(confused, cache.vocabulary, pairs),
    }


def sample_rows(cache: TeacherCache, sample: int | None, seed: int) -> NDArray[np.int64]:
    """Return the rows for the statistics, ascending: all readable ones or a random sample of them.

    Raises:
        UsageError: there is none.
    """
    rows = np.flatnonzero(cache.valid)
    if sample is not None and sample < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    if len(rows) == 0:
        raise UsageError(f"no image of {cache.path} could be read: nothing to compute statistics from")
    return rows


def entropy(scaled_logits_BC: Tensor) -> Tensor:
    """Return the entropy of each row's softmax in nats, [B]."""
    log_p_BC = torch.log_softmax(scaled_logits_BC, dim=1)
    return -(log_p_BC.exp() * log_p_BC).sum(dim=1)


def _most_confused(codes: NDArray[np.int64], vocabulary: Vocabulary, pairs: int) -> list[dict[str, Any]]:
    found, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:pairs]
    return [
        {
            "label": label,
            "predicted": predicted,
            "label_name": vocabulary.names[label],
            "predicted_name": vocabulary.names[predicted],
            "label_id": vocabulary.ids[label],
            "predicted_id": vocabulary.ids[predicted],
            "count": int(counts[at]),
        }
        for at in order
        for label, predicted in [divmod(int(found[at]), len(vocabulary))]
    ]
