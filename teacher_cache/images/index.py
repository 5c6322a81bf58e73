"""An image source -> the table of its samples: headers only are read, each once, and not again while nothing
changed."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import pyarrow as pa

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError, printable
from teacher_cache.images.folder import folder_times, index_folder
from teacher_cache.images.labels import resolve_labels
from teacher_cache.images.lists import index_list
from teacher_cache.images.parquet import index_parquet
from teacher_cache.images.rows import Rows, joined
from teacher_cache.images.sources import IMAGE_SUFFIXES, THREADS, Source, find_source
from teacher_cache.images.table import Origin, SampleTable
from teacher_cache.images.tars import TarSpan, index_tar
from teacher_cache.progress import Counter, counting

QUIET_SECONDS = 2.0
INDEX_VERSION = 2  # counts up when the same source gives other rows than before

Work = TypeVar("Work")
Done = TypeVar("Done")


def index_images(
    source: str, vocabulary: Vocabulary, known: SampleTable | None = None
) -> tuple[SampleTable, list[str]]:
    """Read a source's headers into a sample table, in the source's order.

    Args:
        known: what an earlier call returned, perhaps written and read again. It is returned as it is, and no
            header is read, if it was made of the same files with the same sizes and times, and for the same
            classes. Of an image folder the times of its folders count, not those of its images.

    Returns:
        The table, and notes for the user (a truncated shard, labels outside the vocabulary, ...).

    Raises:
        UsageError: no image found, a shard that is no tar, or labels that do not fit the vocabulary.
        RppError: a file cannot be read, or the network fails.
    """
    found = find_source(source)
    origin = known.origin if known is not None else None
    if known is not None and origin is not None:
        times = {} if found.is_remote else folder_times(found.files[0].path, origin.folders)
        if origin.fingerprint == _fingerprint(found, vocabulary, times):
            return known, origin.notes
    times = {}
    if found.kind == "folder":
        rows, times = index_folder(found.files[0].path)
        pieces = [rows]
    elif found.kind == "list":
        pieces = [index_list(found.files[0], found.part)]
    elif found.kind == "parquet":
        pieces = _all("Parquet files", index_parquet, found.files)
    else:
        pieces = _index_tars(found)
    notes = [note for piece in pieces for note in piece.notes]
    class_list = _common_class_list(pieces, source)
    raw = joined(pieces)
    if raw.num_rows == 0:
        raise UsageError(f"image source '{source}' holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    labels, label_notes = resolve_labels(raw, class_list, vocabulary, source, by_order=found.kind == "folder")
    columns = {name: raw[name] for name in ("key", "path", "offset", "length")}
    table = SampleTable(pa.table({**columns, "label": pa.array(labels, pa.int32())}))
    notes = [printable(note) for note in (*notes, *label_notes)]
    if (found.kind == "folder" and found.is_remote) or found.kind == "list":
        return table, notes  # whether images changed is known when all are looked for, and then it is indexed
    # sizes and times are from before the files were read: what changed since is read again the next time
    return table.made_of(Origin(_fingerprint(found, vocabulary, times), notes, list(times))), notes


def _index_tars(source: Source) -> list[Rows]:
    """Rows of all shards, each followed by the tars inside it."""
    outer = _all("shards", index_tar, [TarSpan(file, 0, file.size) for file in source.files])
    inner = iter(_all("tars in tars", index_tar, [span for _, spans in outer for span in spans]))
    pieces: list[Rows] = []
    for rows, spans in outer:
        pieces.append(rows)
        for _ in spans:
            inside, deeper = next(inner)
            inside.notes += [f"{span}: a tar in a tar in a tar is not read" for span in deeper]
            pieces.append(inside)
    return pieces


def _all(what: str, index: Callable[[Work], Done], work: Sequence[Work]) -> list[Done]:
    """Index many files at once, the results in the order of the files; progress is shown if it takes long."""
    done: list[Done] = []
    counter: Counter | None = None
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool, ExitStack() as shown:
        try:
            for result in pool.map(index, work):
                if counter is None and time.monotonic() - started > QUIET_SECONDS:
                    counter = shown.enter_context(counting(what, len(work)))
                    counter.start_at(len(done))
                done.append(result)
                if counter:
                    counter()
        except BaseException:  # Ctrl-C does not wait for thousands of files that nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _common_class_list(pieces: Iterable[Rows], source: str) -> tuple[str, ...] | None:
    lists = {piece.class_list: piece.path for piece in pieces}
    if len(lists) > 1:
        one, other, *_ = lists.values()
        raise UsageError(f"'{source}': {one} and {other} name different classes; index them one by one")
    return next(iter(lists))


def _fingerprint(source: Source, vocabulary: Vocabulary, folder_times: dict[str, int]) -> str:
    """Digest of all that decides the table: files with sizes and versions, folders with times, classes."""
    digest = hashlib.blake2b(f"{INDEX_VERSION} {source.kind}".encode(), digest_size=16)
    parts = [part for file in source.files for part in (file.path, str(file.size), file.version)]
    parts += [part for folder, time in folder_times.items() for part in (folder, str(time))]
    for part in (*parts, *vocabulary.ids, *vocabulary.names):
        digest.update(part.encode(errors="surrogateescape") + b"\0")
    return f"blake2b:{digest.hexdigest()}"
