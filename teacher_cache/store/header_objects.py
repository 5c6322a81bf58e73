"""The header as it is stored: attributes of the group, and a copy of them that serves if they are damaged.

Knows the versions of the cache's format: a newer one is refused, the header of an older one is read as
today's has it. The other objects of older formats are in `older.py`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from teacher_cache.distribution import rpp_version
from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.checksums import sealed, unsealed
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import CacheHeader, require_name
from teacher_cache.store.layout import group_metadata
from teacher_cache.store.presence import GROUP, HEADER_COPY, no_cache

FORMAT = "rpp-cache"
FORMAT_VERSION = 2  # a layout that an older version of rpp would misread is another one


def header_objects(header: CacheHeader, samples_checksum: str) -> dict[str, bytes]:
    """The objects by key, in the order in which they are to be written: the first makes the cache."""
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(header)}
    attributes = sealed(json.loads(json.dumps({**record, "samples_checksum": samples_checksum})))
    return {GROUP: group_metadata(attributes), HEADER_COPY: json.dumps(attributes).encode()}


def read_header(folder: Folder) -> tuple[CacheHeader, str, int]:
    """The header, the checksum of the sample table (empty where the format had none), the format's version.

    Raises:
        UsageError: no cache there, or one of a newer format.
        CacheDamagedError: neither the header nor its copy is what was written.
    """
    try:
        attributes = _read_sealed(folder, GROUP)
    except (CacheDamagedError, FileNotFoundError, NotADirectoryError) as damage:
        try:
            attributes = _read_sealed(folder, HEADER_COPY)
        except (CacheDamagedError, UsageError, FileNotFoundError, NotADirectoryError):
            if isinstance(damage, CacheDamagedError):
                raise damage from None
            raise no_cache(folder.url) from damage
    stored = int(attributes["format_version"])
    try:
        for number in range(stored, FORMAT_VERSION):
            attributes = UPGRADES[number](folder, attributes)
        header = CacheHeader.from_record(attributes)
    except (KeyError, TypeError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise CacheDamagedError(f"{folder.url}/{GROUP} does not describe a cache: {error}") from error
    return header, str(attributes.get("samples_checksum")), stored


def _from_format_1(folder: Folder, attributes: dict[str, Any]) -> dict[str, Any]:
    """Nothing was sealed, and at first there were one encoding and one pass."""
    encoding = attributes["encoding"]
    require_name(attributes["vocabulary"])
    vocabulary = _attributes(folder, f"vocabularies/{attributes['vocabulary']}/{GROUP}")
    return {
        "classes": len(vocabulary["names"]),
        "passes": [attributes["view_policy"]["views"]],
        **attributes,
        "encoding": {"name": encoding} if isinstance(encoding, str) else encoding,
        "samples_checksum": "",
    }


# By the version that a header was written in: the same attributes as the next version has them.
UPGRADES: dict[int, Callable[[Folder, dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}


def _read_sealed(folder: Folder, key: str) -> dict[str, Any]:
    """Attributes of a cache of a version that is known here, as they were sealed."""
    found = _attributes(folder, key)
    stored = found.get("format_version")
    try:
        attributes = unsealed(found, f"{folder.url}/{key}")
    except CacheDamagedError:
        ours = (found.get("format"), stored) == (FORMAT, FORMAT_VERSION)
        if ours or "checksum" in found:
            raise
        attributes = found
    if attributes.get("format") != FORMAT:
        raise UsageError(f"{folder.url} is a Zarr group, but not written by rpp-cache")
    oldest = min(UPGRADES)
    if type(stored) is not int or stored < oldest:
        raise CacheDamagedError(
            f"{folder.url}/{key} names cache format {stored!r}, which no version of rpp writes: copy the "
            "cache again, or build it anew"
        )
    if stored > FORMAT_VERSION:
        writer = attributes.get("software", "a newer rpp")
        raise UsageError(
            f"{folder.url} has cache format {stored}, written by {writer}; "
            f"rpp {rpp_version()} reads formats {oldest} to {FORMAT_VERSION}: install a newer rpp-clip"
        )
    return attributes


def _attributes(folder: Folder, key: str) -> dict[str, Any]:
    try:
        record = parse_json(folder.read(key))
        found = record if key == HEADER_COPY else record["attributes"]
    except (ValueError, KeyError, TypeError) as error:
        raise CacheDamagedError(f"{folder.url}/{key} is not readable: {error}") from error
    if not isinstance(found, dict):
        raise CacheDamagedError(f"{folder.url}/{key} is not readable: it holds no attributes")
    return found
