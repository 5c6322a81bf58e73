"""The cache on disk or in an object store: created, opened, committed by parts and verified."""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from teacher_cache.store.cache_store import CacheStore
    from teacher_cache.store.checksums import checksum
    from teacher_cache.store.header import CHUNK_ROWS, SAMPLE_ARRAYS, CacheHeader, part_rows
    from teacher_cache.store.local_folder import disk_errors
    from teacher_cache.store.parts import StoredParts
    from teacher_cache.store.records import PartRecord
    from teacher_cache.store.samples import SAMPLES, StoredSamples
    from teacher_cache.store.verify import Damage, verify_store
    from teacher_cache.store.vocabularies import vocabulary_digest
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "cache_store": ("CacheStore",),
            "checksums": ("checksum",),
            "header": ("CHUNK_ROWS", "SAMPLE_ARRAYS", "CacheHeader", "part_rows"),
            "local_folder": ("disk_errors",),
            "parts": ("StoredParts",),
            "records": ("PartRecord",),
            "samples": ("SAMPLES", "StoredSamples"),
            "verify": ("Damage", "verify_store"),
            "vocabularies": ("vocabulary_digest",),
        },
    )

__all__ = [
    "CHUNK_ROWS",
    "SAMPLES",
    "SAMPLE_ARRAYS",
    "CacheHeader",
    "CacheStore",
    "Damage",
    "PartRecord",
    "StoredParts",
    "StoredSamples",
    "checksum",
    "disk_errors",
    "part_rows",
    "verify_store",
    "vocabulary_digest",
]
