"""Export of a cache's soft labels to one Parquet file, for other trainers.

Shapes: B rows, C classes, K classes kept.
"""

import errno
import json
import os
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write
from teacher_cache.files.places import local_path
from teacher_cache.indices import as_integer, as_number
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.store.header import CHUNK_ROWS
from teacher_cache.store.vocabularies import vocabulary_digest

ROWS_A_GROUP = 16 * CHUNK_ROWS
DEFAULT_TOP = 20
METADATA = b"rpp"  # key of the schema's metadata


def export_soft_labels(
    cache: TeacherCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    top: int | None = None,
    temperature: float = 1.0,
    view: int = 0,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> int:
    """Write the `top` likeliest classes of every readable sample; return the number of rows.

    Columns: key; label (int32 class index, -1 = none); label_id (the class's id, null = none); classes
    (list of int32, likeliest first); probabilities (list of float32, of the softmax over all classes, so
    they sum to less than 1); row (int64, row of the cache); path (string) and offset (int64) of the image, as
    in `samples.parquet`; view (int32). Keys may be repeated, rows are not. The file appears complete or not
    at all.

    Args:
        cache: the cache to export, or its path or URL.
        out: the file to create, in a folder that is created too.
        top: number of classes; if None, 20, or all of a smaller vocabulary.
        on_rows: called with the number of rows of each finished chunk.

    Raises:
        UsageError: more classes than the vocabulary has, a temperature or view that the cache does not have,
            or a file that exists or cannot be written.
    """
    cache = cache if isinstance(cache, TeacherCache) else open_cache(cache)
    out, temperature = local_path(out), as_number(temperature, "temperature")
    cache.encoding.require_temperature(temperature)
    view = cache.require_view(view)
    classes = len(cache.vocabulary)
    top = min(DEFAULT_TOP, classes) if top is None else as_integer(top, "number of classes to keep")
    if not 1 <= top <= classes:
        raise UsageError(
            f"the top {top} classes requested from a vocabulary of {classes}: expected 1 to {classes}"
        )
    if os.path.exists(out):
        raise UsageError(f"{out} exists; choose another --out")
    schema = _schema(cache, top, temperature, view)
    written = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out, shared=True) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for first in range(0, len(cache), ROWS_A_GROUP):
                group = range(first, min(first + ROWS_A_GROUP, len(cache)))
                batches = []
                for start in group[::CHUNK_ROWS]:
                    rows = np.arange(start, min(start + CHUNK_ROWS, group.stop))
                    batches.append(_batch(cache, rows[cache.valid[rows]], schema, top, temperature, view))
                    on_rows(len(rows))
                writer.write_table(pa.Table.from_batches(batches, schema))
                written += sum(len(batch) for batch in batches)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow's texts are longer
        raise (RppError if full else UsageError)(f"cannot write {out}: {reason}") from error
    return written


def _schema(cache: TeacherCache, top: int, temperature: float, view: int) -> pa.Schema:
    header, vocabulary = cache.header, cache.vocabulary
    record = {
        "temperature": temperature,
        "top": top,
        "view": view,
        "teacher": cache.teacher,
        "encoding": header.encoding,
        "sample_table_digest": header.sample_table_digest,
        "vocabulary": cache.vocabulary_name,
        "vocabulary_digest": vocabulary_digest(vocabulary),
        "names": list(vocabulary.names),
        "ids": list(vocabulary.ids),
    }
    fields = [
        pa.field("key", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("label_id", pa.string()),
        pa.field("classes", pa.list_(pa.int32())),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("row", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("view", pa.int32()),
    ]
    return pa.schema(fields, metadata={METADATA: json.dumps(record, ensure_ascii=False)})


def _batch(
    cache: TeacherCache, rows: NDArray[np.int64], schema: pa.Schema, top: int, temperature: float, view: int
) -> pa.RecordBatch:
    """Return the given rows, which are in one chunk of the store."""
    classes_BK = np.empty((len(rows), top), dtype=np.int32)
    probabilities_BK = np.empty((len(rows), top), dtype=np.float32)
    for at, stored in cache.stored_pieces(rows, view):
        logits_BC = cache.finite(cache.encoding.logits(stored, cache.head, temperature))
        kept = torch.softmax(logits_BC / temperature, dim=1).topk(top, dim=1)
        classes_BK[at], probabilities_BK[at] = kept.indices.numpy(), kept.values.numpy()
    ends = np.arange(len(rows) + 1, dtype=np.int32) * top
    labels = cache.labels[rows]
    ids = cache.vocabulary.ids
    samples = cache.samples.take(rows).combine_chunks()
    key, path, offset = (samples[name].combine_chunks() for name in ("key", "path", "offset"))
    columns = [
        key.cast(pa.string()),
        pa.array(labels, pa.int32()),
        pa.array([ids[label] if label >= 0 else None for label in labels], pa.string()),
        pa.ListArray.from_arrays(ends, classes_BK.ravel()),
        pa.ListArray.from_arrays(ends, probabilities_BK.ravel()),
        pa.array(rows, pa.int64()),
        path.cast(pa.string()),
        offset,
        pa.array(np.full(len(rows), view), pa.int32()),
    ]
    return pa.record_batch(columns, schema=schema)
