"""The cache's header as it is stored: attributes of the Zarr group, and a copy of them in `header.json`.

Reads the copy if the group's attributes are damaged, and refuses caches of other formats.
"""

import json
from dataclasses import asdict
from typing import Any

from teacher_cache.distribution import rpp_version
from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.checksums import with_checksum, without_checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.layout import canonical, group_metadata
from teacher_cache.store.presence import GROUP, HEADER_COPY, no_cache

FORMAT = "rpp-cache"
FORMAT_VERSION = 2  # raised when an older version of rpp would misread the layout
# Of caches whose `decoder` is not Pillow: an older version would continue them with Pillow's pixels.
OTHER_DECODER_VERSION = 3


def header_objects(header: CacheHeader, samples_checksum: str) -> dict[str, bytes]:
    """Return the objects to store, by key, in the order to write them: the first one creates the cache."""
    version = FORMAT_VERSION if header.decoder == "pillow" else OTHER_DECODER_VERSION
    record = {"format": FORMAT, "format_version": version, **asdict(header)}
    attributes = with_checksum(json.loads(json.dumps({**record, "samples_checksum": samples_checksum})))
    return {GROUP: group_metadata(attributes), HEADER_COPY: json.dumps(attributes).encode()}


def read_header(folder: Folder) -> tuple[CacheHeader, str]:
    """Return the header and the checksum of the sample table.

    Raises:
        UsageError: no cache there, or a cache of another format.
        CacheDamagedError: neither the header nor its copy is intact.
    """
    try:
        return read_header_object(folder, GROUP)
    except (CacheDamagedError, FileNotFoundError, NotADirectoryError) as damage:
        try:
            return read_header_object(folder, HEADER_COPY)
        except (CacheDamagedError, UsageError, FileNotFoundError, NotADirectoryError):
            if isinstance(damage, CacheDamagedError):
                raise damage from None
            raise no_cache(folder.url) from damage


def read_header_object(folder: Folder, key: str) -> tuple[CacheHeader, str]:
    """Return the header and the checksum of the sample table from one of the two stored objects.

    Raises:
        FileNotFoundError: the object does not exist.
        UsageError: the object belongs to another program, or to a cache of another format.
        CacheDamagedError: the object is not what was written.
    """
    what = f"{folder.url}/{key}"
    found = _attributes(folder, key, what)
    version = found.get("format_version")
    # an object without a checksum can still belong to another program or another format
    ours = found.get("format") == FORMAT and version in (FORMAT_VERSION, OTHER_DECODER_VERSION)
    attributes = without_checksum(found, what) if ours or "checksum" in found else found
    _require_known_format(attributes, folder.url, what)
    try:
        return CacheHeader.from_record(attributes), str(attributes["samples_checksum"])
    except (KeyError, ValueError) as error:
        raise CacheDamagedError(f"{what} does not describe a cache: {error}") from error


def header_is_intact(folder: Folder, key: str, header: CacheHeader, samples_checksum: str) -> bool:
    """Return whether one of the two stored objects describes this header. A stored header may lack options
    that were added later and have their defaults here."""
    try:
        if read_header_object(folder, key) != (header, samples_checksum):
            return False
        if key == HEADER_COPY:
            return True
        group = {**parse_json(folder.read(key)), "attributes": {}}
        return bool(canonical(group) == canonical(parse_json(group_metadata({}))))
    except (FileNotFoundError, NotADirectoryError, CacheDamagedError, UsageError):
        return False


def _require_known_format(attributes: dict[str, Any], url: str, what: str) -> None:
    version = attributes.get("format_version")
    if attributes.get("format") != FORMAT:
        raise UsageError(f"{url} is a Zarr group, but was not written by rpp-cache")
    if type(version) is not int or version < 1:
        raise CacheDamagedError(
            f"{what} has cache format {version!r}, which no version of rpp writes; copy or build the cache "
            "again"
        )
    if version < FORMAT_VERSION:
        raise UsageError(
            f"{url} has cache format {version}, written by a development version of rpp; build the cache "
            "again in another --out"
        )
    if version > OTHER_DECODER_VERSION:
        writer = attributes.get("software", "a newer rpp")
        raise UsageError(
            f"{url} has cache format {version}, written by {writer}; rpp {rpp_version()} reads formats "
            f"{FORMAT_VERSION} and {OTHER_DECODER_VERSION}: install a newer rpp-clip"
        )


def _attributes(folder: Folder, key: str, what: str) -> dict[str, Any]:
    try:
        record = parse_json(folder.read(key))
    except ValueError as error:
        raise CacheDamagedError(f"{what} is not readable: {error}; copy the cache again") from error
    attributes = record.get("attributes") if key == GROUP and isinstance(record, dict) else record
    if not isinstance(attributes, dict):
        raise CacheDamagedError(f"{what} is not readable: it has no attributes")
    return attributes
