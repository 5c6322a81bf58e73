"""The Zarr objects that are a function of what the cache is of: group and array metadata.

They are made in memory and written as whole objects, so that their order is ours: what marks a thing as
complete is written last. What was damaged of them is written again from the same functions.
"""

import json
from collections.abc import Callable
from typing import Any

import zarr

from teacher_cache.compat.zarr import written_objects
from teacher_cache.encodings import ArraySpec
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.header import CHUNK_ROWS, SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.presence import GROUP

# What zarr may raise on metadata that are not as they should be.
METADATA_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


# Members of an array's metadata that mean the same whether they are absent or empty.
OPTIONAL = ("configuration", "attributes", "storage_transformers", "consolidated_metadata")


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    record = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(record, ensure_ascii=False, indent=1).encode()


def array_metadata(header: CacheHeader) -> dict[str, bytes]:
    """`zarr.json` of every array that has a row a sample, by key."""

    def lay_out(group: zarr.Group) -> None:
        for name, spec in SAMPLE_ARRAYS.items():
            _create_array(group, name, spec, header, ())
        for name, spec in header.per_view.items():
            _create_array(group, name, spec, header, (("view", header.views),))

    return objects_in_memory(lay_out)


def same_metadata(stored: bytes, expected: bytes) -> bool:
    """Whether stored metadata mean what they should, however they are written."""
    try:
        found, wanted = parse_json(stored), parse_json(expected)
        if found == wanted:
            return True
        return bool(canonical(found) == canonical(wanted))
    except METADATA_ERRORS:
        return False


def canonical(metadata: Any) -> Any:
    """Metadata of an array as the Zarr v3 specification lets every writer spell them, spelt in one way.

    An extension (data type, chunk grid, codec, ...) is an object with a name and perhaps a configuration, or
    its name alone; empty members may be left out. `must_understand` says nothing of the array's content.
    """
    if isinstance(metadata, list):
        return [canonical(value) for value in metadata]
    if not isinstance(metadata, dict):
        return metadata
    members = {
        name: canonical(value)
        for name, value in metadata.items()
        if name != "must_understand" and not (name in OPTIONAL and not value)
    }
    return members["name"] if members.keys() == {"name"} else members


def objects_in_memory(lay_out: Callable[[zarr.Group], None]) -> dict[str, bytes]:
    """What zarr would store, by key, without the group's own metadata."""
    objects = written_objects(lambda store: lay_out(zarr.create_group(store, zarr_format=3)))
    return {key: content for key, content in objects.items() if key != GROUP}


def _create_array(
    group: zarr.Group, name: str, spec: ArraySpec, header: CacheHeader, view: tuple[tuple[str, int], ...]
) -> None:
    # Views are shards of their own, so that more of them can be added later.
    inner = (*(1 for _ in view), *(size for _, size in spec.axes))
    axes = (*view, *spec.axes)
    group.create_array(
        name,
        shape=(header.samples, *(size for _, size in axes)),
        dtype=spec.dtype,
        shards=(header.part_size, *inner),
        chunks=(min(CHUNK_ROWS, header.part_size), *inner),
        compressors=None,  # float16 features compress by 8% and read 4 times slower
        fill_value=spec.fill,
        dimension_names=("sample", *(axis for axis, _ in axes)),
    )
