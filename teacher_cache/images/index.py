"""Turn an image source into its table of samples. Only headers are read, and only again after a change."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError, printable
from teacher_cache.images.decode import IMAGE_SUFFIXES
from teacher_cache.images.folder import folder_times
from teacher_cache.images.labels import resolve_labels
from teacher_cache.images.leftovers import kind_of_leftover, sum_of_leftovers
from teacher_cache.images.rows import Rows, joined, joined_statements
from teacher_cache.images.sources import SOURCES, Source, find_source
from teacher_cache.images.statements import LabelChoice
from teacher_cache.images.table import Origin, SampleTable

INDEX_VERSION = 3  # increase it when the same source gives other rows than before

KEPT_ROWS = (
    "the cache was started by an earlier version of rpp and keeps its rows and labels: files that this "
    "version passes over may be among them, and labels were not compared; another --out indexes the images "
    "again"
)


def index_images(
    source: str,
    vocabulary: Vocabulary,
    known: SampleTable | None = None,
    labels: LabelChoice = "auto",
) -> tuple[SampleTable, list[str]]:
    """Read a source's headers into a sample table, in the source's order.

    Args:
        known: the result of an earlier call, perhaps stored and read again. It is returned as is, and no
            header is read, if its files have the same sizes and times and the classes are the same. For an
            image folder the times of its folders are compared, not those of its images. A table of an earlier
            version keeps its rows, so that its cache can be resumed.
        labels: which label counts where several of a sample name different classes; `auto` refuses them.

    Returns:
        The table, and notes for the user (a truncated shard, labels outside the vocabulary, ...).

    Raises:
        UsageError: no image was found, a shard is not a tar, or labels do not fit the vocabulary or
            contradict one another.
        RppError: a file cannot be read, or the network fails.
    """
    found = find_source(source)
    origin = known.origin if known is not None else None
    if known is not None and origin is not None:
        times = {} if found.is_remote else folder_times(found.files[0].path, origin.folders)
        if origin.fingerprint == _fingerprint(found, vocabulary, times, labels):
            return known, origin.notes
        if labels == "auto" and origin.fingerprint == _fingerprint(found, vocabulary, times, version=2):
            return known, [*origin.notes, KEPT_ROWS]
    pieces = SOURCES[found.kind].index(found)
    times = {folder: time for piece in pieces for folder, time in piece.folder_times.items()}
    reusable, by_order = all(p.reusable for p in pieces), all(p.by_order for p in pieces)
    notes = [note for piece in pieces for note in piece.notes]
    class_list = _common_class_list(pieces, source)
    notes += sum_of_leftovers([found.leftovers, *(piece.leftovers for piece in pieces)]).notes
    several = joined_statements([(piece.several, piece.table.num_rows) for piece in pieces])
    raw = joined(pieces)
    if raw.num_rows == 0:
        passed_over = "".join(f"; {note}" for note in notes)
        raise UsageError(
            f"image source '{source}' contains no image ({', '.join(sorted(IMAGE_SUFFIXES))}){passed_over}"
        )
    labels_N, report = resolve_labels(raw, class_list, vocabulary, source, by_order, several, labels)
    columns = {name: raw[name] for name in ("key", "path", "offset", "length")}
    table = SampleTable(pa.table({**columns, "label": pa.array(labels_N, pa.int32())}))
    notes = [printable(note) for note in (*notes, *report.notes)]
    table = table.with_label_report(replace(report, notes=notes))
    if not reusable:
        if known is not None and known.label_report is None and _differs_by_leftovers(known, table):
            return known, [*notes, KEPT_ROWS]
        return table, notes
    # sizes and times are from before the files were read: a change since then is read the next time
    fingerprint = _fingerprint(found, vocabulary, times, labels)
    return table.with_origin(Origin(fingerprint, notes, list(times))), notes


def _differs_by_leftovers(known: SampleTable, table: SampleTable) -> bool:
    """Return whether an earlier version's table has the same samples and leftovers beside them."""
    if len(known) <= len(table):
        return False
    keys = [key for key in known.keys(slice(None)) if kind_of_leftover(key) is None]
    return keys == table.keys(slice(None))


def _common_class_list(pieces: Iterable[Rows], source: str) -> tuple[str, ...] | None:
    lists = {piece.class_list: piece.path for piece in pieces}
    if len(lists) > 1:
        one, other, *_ = lists.values()
        raise UsageError(f"'{source}': {one} and {other} name different classes; index them one by one")
    return next(iter(lists))


def _fingerprint(
    source: Source,
    vocabulary: Vocabulary,
    folder_times: dict[str, int],
    labels: LabelChoice = "auto",
    version: int | None = None,
) -> str:
    """Digest of all that decides the table: files with sizes and versions, folders with times, classes, and
    which label counts."""
    choice = "" if labels == "auto" else f" {labels}"
    text = f"{version or INDEX_VERSION} {source.kind}{choice}"
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    parts = [part for file in source.files for part in (file.path, str(file.size), file.version)]
    parts += [part for folder, time in folder_times.items() for part in (folder, str(time))]
    for part in (*parts, *vocabulary.ids, *vocabulary.names):
        digest.update(part.encode(errors="surrogateescape") + b"\0")
    return f"blake2b:{digest.hexdigest()}"
