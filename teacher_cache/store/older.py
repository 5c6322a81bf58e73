"""Caches of older formats, read as if they had been written today. Nothing is written to them.

Knows the objects that were others then. What the header lacked is filled in by `header_objects.py`.

Format 1, of November 2026 and never released: header, records and vocabularies without checksums of their
own, no copy of the header, no checksum of `samples.parquet`. The arrays are the same.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from zarr.abc.store import Store

from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.checksums import sealed
from teacher_cache.store.folder import Folder, Sink
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.header_objects import header_objects
from teacher_cache.store.layout import group_metadata
from teacher_cache.store.presence import GROUP
from teacher_cache.store.records import PARTS
from teacher_cache.store.vocabularies import FEATURES, VOCABULARIES


class Format1Folder(Folder):
    """A folder that holds a cache of format 1; what is read of it is as today's format has it."""

    def __init__(self, folder: Folder, header: CacheHeader) -> None:
        self.url, self.absolute = folder.url, folder.absolute
        self._folder = folder
        self._header = header_objects(header, "")

    def read(self, key: str) -> bytes:
        return self._as_today(key, b"" if key in self._header else self._folder.read(key))

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self._as_today(*one) for one in zip(keys, self._folder.read_many(keys), strict=True)]

    def _as_today(self, key: str, content: bytes) -> bytes:
        if key in self._header:
            return self._header[key]
        top, *within, name = key.split("/")
        try:
            if top == PARTS and name.endswith(".json"):
                return json.dumps(sealed(parse_json(content))).encode()
            if top == VOCABULARIES and len(within) == 1 and name == GROUP:
                attributes = dict(parse_json(content)["attributes"])
                attributes[FEATURES] = attributes.pop("checksum")
                return group_metadata(sealed(attributes))
        except (ValueError, KeyError, TypeError) as error:
            raise CacheDamagedError(f"{self.url}/{key} is not readable: {error}") from error
        return content

    def open(self, key: str) -> Any:
        return self._folder.open(key)

    def names(self, key: str = "") -> list[str]:
        return self._folder.names(key)

    def objects(self, key: str = "") -> list[str]:
        return self._folder.objects(key)

    def sizes(self, key: str = "") -> dict[str, int]:
        return self._folder.sizes(key)

    def exists(self, key: str) -> bool:
        return key in self._header or self._folder.exists(key)

    def is_writable(self) -> bool:
        return False

    def zarr_store(self, writable: bool) -> Store:
        return self.refuse() if writable else self._folder.zarr_store(writable=False)

    def write(self, key: str, content: bytes) -> None:
        self.refuse()

    def writing(self, key: str) -> AbstractContextManager[Sink]:
        return self.refuse()

    def remove(self, key: str) -> None:
        self.refuse()

    def refuse(self) -> NoReturn:
        """Refuse to write.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self.url} has cache format 1, which this version of rpp reads but does not write to; build it "
            "anew in another --out"
        )
