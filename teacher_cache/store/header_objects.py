"""The header as it is stored: attributes of the group, and a copy of them that serves if they are damaged."""

import json
from dataclasses import asdict
from typing import Any

from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.json_text import parse_json
from teacher_cache.store.checksums import sealed, unsealed
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.layout import GROUP, group_metadata

FORMAT = "rpp-cache"
FORMAT_VERSION = 2
HEADER_COPY = "header.json"


def header_objects(header: CacheHeader, samples_checksum: str) -> dict[str, bytes]:
    """The objects by key, in the order in which they are to be written: the first makes the cache."""
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(header)}
    attributes = sealed(json.loads(json.dumps({**record, "samples_checksum": samples_checksum})))
    return {GROUP: group_metadata(attributes), HEADER_COPY: json.dumps(attributes).encode()}


def read_header(folder: Folder) -> tuple[CacheHeader, str]:
    """The header, and the checksum of the sample table.

    Raises:
        UsageError: no cache there, or one of another format.
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
            raise UsageError(f"no cache at {folder.url}") from damage
    try:
        return CacheHeader.from_record(attributes), str(attributes.get("samples_checksum"))
    except ValueError as error:
        raise CacheDamagedError(f"{folder.url}/{GROUP} does not describe a cache: {error}") from error


def _read_sealed(folder: Folder, key: str) -> dict[str, Any]:
    """Attributes of a cache of this version, as they were sealed."""
    found = _attributes(folder, key)
    try:
        attributes = unsealed(found, f"{folder.url}/{key}")
    except CacheDamagedError:
        ours = (found.get("format"), found.get("format_version")) == (FORMAT, FORMAT_VERSION)
        if ours or "checksum" in found:
            raise
        attributes = found
    if attributes.get("format") != FORMAT:
        raise UsageError(f"{folder.url} is a Zarr group, but not written by rpp-cache")
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{folder.url} has cache format {version}; this version of rpp reads {FORMAT_VERSION}: "
            "use a version of rpp that knows it"
        )
    return attributes


def _attributes(folder: Folder, key: str) -> dict[str, Any]:
    try:
        record = parse_json(folder.read(key))
        found = record["attributes"] if key == GROUP else record
    except (ValueError, KeyError, TypeError) as error:
        raise CacheDamagedError(f"{folder.url}/{key} is not readable: {error}") from error
    if not isinstance(found, dict):
        raise CacheDamagedError(f"{folder.url}/{key} is not readable: it holds no attributes")
    return found
