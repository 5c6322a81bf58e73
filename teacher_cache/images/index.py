"""An image source -> the table of its samples: headers only are read, each once."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from teacher_cache.errors import UsageError
from teacher_cache.images.folder import index_folder
from teacher_cache.images.labels import resolve_labels
from teacher_cache.images.sources import IMAGE_SUFFIXES, expand_source
from teacher_cache.images.table import SampleTable
from teacher_cache.images.tars import index_tar
from teacher_cache.vocabulary import Vocabulary


def index_images(source: str, vocabulary: Vocabulary) -> tuple[SampleTable, list[str]]:
    """Read a source's headers into a sample table, in the source's order.

    Returns:
        The table, and notes for the user (a truncated shard, labels outside the vocabulary, ...).

    Raises:
        UsageError: no image found, a shard that is no tar, or labels that do not fit the vocabulary.
    """
    paths = expand_source(source)
    notes: list[str] = []
    if paths[0].is_dir():
        raw = index_folder(paths[0].resolve())
    else:
        # tarfile holds the GIL for little of its time: it waits for the disk.
        with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
            indexed = list(pool.map(index_tar, [path.resolve() for path in paths]))
        raw = pa.concat_tables(
            [table for table, _ in indexed], promote_options="permissive"
        ).unify_dictionaries()
        notes += [note for _, of_shard in indexed for note in of_shard]
    if raw.num_rows == 0:
        raise UsageError(f"image source '{source}' holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    labels, label_notes = resolve_labels(raw, vocabulary, source)
    columns = {name: raw[name] for name in ("key", "path", "offset", "length")}
    return SampleTable(pa.table({**columns, "label": pa.array(labels, pa.int32())})), notes + label_notes
