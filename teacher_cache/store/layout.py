"""Metadata of the Zarr group and its arrays, which follow from the header.

They are created in memory and written as complete objects, so that this project decides their order: what
marks a thing as complete is written last. Damaged metadata are written again from the same functions.
"""

import json
from collections.abc import Callable
from typing import Any

import zarr

from teacher_cache.compat.zarr import written_objects
from teacher_cache.encodings import ArraySpec
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.header import CHUNK_ROWS, MOST_VIEWS, SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.presence import GROUP

# Members of an array's metadata that mean the same if they are absent or empty.
OPTIONAL = ("configuration", "attributes", "storage_transformers", "consolidated_metadata")


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """Return `zarr.json` of a group."""
    record = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(record, ensure_ascii=False, indent=1).encode()


def array_metadata(header: CacheHeader) -> dict[str, bytes]:
    """Return `zarr.json` of every per-sample array, by key."""

    def lay_out(group: zarr.Group) -> None:
        for name, spec in SAMPLE_ARRAYS.items():
            _create_array(group, name, spec, header, ())
        for name, spec in header.per_view.items():
            _create_array(group, name, spec, header, (("view", header.views),))

    return objects_in_memory(lay_out)


def same_metadata(stored: bytes, expected: bytes) -> bool:
    """Return whether stored metadata have the expected meaning, in any spelling of the specification."""
    try:
        found, wanted = parse_json(stored), parse_json(expected)
        return bool(found == wanted or canonical(found) == canonical(wanted))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return False


def same_layout(stored: bytes, expected: bytes) -> bool:
    """Return whether an array can be read as expected: all metadata agree but the attributes and the number
    of views, which differs from the header's while views are added."""
    try:
        found, wanted = parse_json(stored), parse_json(expected)
        if not (isinstance(found, dict) and isinstance(found.get("attributes", {}), dict)):
            return False
        shape, expected_shape = found.get("shape"), wanted["shape"]
        if not (isinstance(shape, list) and len(shape) == len(expected_shape)):
            return False
        if len(shape) > 1 and type(shape[1]) is int and 0 < shape[1] <= MOST_VIEWS:
            shape[1] = expected_shape[1]
        return bool(canonical({**found, "attributes": {}}) == canonical(wanted))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return False


def canonical(metadata: Any) -> Any:
    """Return an array's metadata in one spelling of those that the Zarr v3 specification allows.

    An extension (data type, chunk grid, codec, ...) is an object with a name and an optional configuration,
    or only its name; empty members may be absent. `must_understand` does not describe the array's content.
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
    """Return what zarr stores, by key, without the group's own metadata."""
    objects = written_objects(lambda store: lay_out(zarr.create_group(store, zarr_format=3)))
    return {key: content for key, content in objects.items() if key != GROUP}


def _create_array(
    group: zarr.Group, name: str, spec: ArraySpec, header: CacheHeader, view: tuple[tuple[str, int], ...]
) -> None:
    # Each view has its own shards, so that more views can be added later.
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
