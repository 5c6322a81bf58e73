"""The Zarr objects that are a function of what the cache is of: group and array metadata, vocabularies.

They are made in memory and written as whole objects, so that their order is ours: what marks a thing as
complete is written last. What was damaged of them is written again from the same functions.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore

from teacher_cache.encodings import ArraySpec
from teacher_cache.errors import CacheDamagedError
from teacher_cache.store.checksums import bytes_checksum, checksum, sealed, unsealed
from teacher_cache.store.header import CHUNK_ROWS, SAMPLE_ARRAYS, CacheHeader
from teacher_cache.vocabulary import Vocabulary

FORMAT = "rpp-cache"
FORMAT_VERSION = 2
GROUP = "zarr.json"
HEADER_COPY = "header.json"
VOCABULARIES = "vocabularies"


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    record = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(record, ensure_ascii=False, indent=1).encode()


def header_attributes(header: CacheHeader, samples_checksum: str) -> dict[str, Any]:
    """Attributes of the cache's group, sealed."""
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(header)}
    return sealed(json.loads(json.dumps({**record, "samples_checksum": samples_checksum})))


def array_metadata(header: CacheHeader) -> dict[str, bytes]:
    """`zarr.json` of every array that has a row a sample, by key."""

    def lay_out(group: zarr.Group) -> None:
        for name, spec in SAMPLE_ARRAYS.items():
            _create_array(group, name, spec, header, ())
        for name, spec in header.per_view.items():
            _create_array(group, name, spec, header, (("view", header.views),))

    return _in_memory(lay_out)


def same_metadata(stored: bytes, expected: bytes) -> bool:
    """Whether stored metadata mean what they should, however they are written."""
    try:
        found, wanted = json.loads(stored), json.loads(expected)
        if found == wanted:
            return True
        parsed = [ArrayV3Metadata.from_dict(record) for record in (found, wanted)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return parsed[0].to_dict() == parsed[1].to_dict()


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Digest of names, ids and templates."""
    return bytes_checksum(json.dumps(vocabulary.to_json(), ensure_ascii=False).encode())


def vocabulary_objects(vocabulary: Vocabulary, features_CD: NDArray[np.float32]) -> dict[str, bytes]:
    """All objects of a vocabulary by key below its group, in the order in which they are to be written."""

    def lay_out(group: zarr.Group) -> None:
        array = group.create_array(
            "class_features",
            shape=features_CD.shape,
            dtype="float32",
            chunks=features_CD.shape,
            compressors=None,
            dimension_names=("class", "feature"),
            config={"write_empty_chunks": True},
        )
        array[:] = features_CD

    attributes = sealed({**vocabulary.to_json(), "class_features": checksum(features_CD)})
    return {**_in_memory(lay_out), GROUP: group_metadata(attributes)}


def read_vocabulary(content: bytes, what: str) -> tuple[Vocabulary, str]:
    """The vocabulary that a group's metadata hold, and the checksum of its class features.

    Raises:
        CacheDamagedError: they are not what was written; `what` names them.
    """
    try:
        record = unsealed(json.loads(content)["attributes"], what)
        return Vocabulary.from_json(record), str(record["class_features"])
    except (ValueError, KeyError, TypeError) as error:
        raise CacheDamagedError(f"{what} is not readable: {error}") from error


def _in_memory(lay_out: Callable[[zarr.Group], None]) -> dict[str, bytes]:
    objects: dict[str, Buffer] = {}
    lay_out(zarr.create_group(MemoryStore(objects), zarr_format=3))
    return {key: content.to_bytes() for key, content in objects.items() if key != GROUP}


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
