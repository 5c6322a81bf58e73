"""Compares everything that is stored with its checksum."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.samples import SAMPLES
from teacher_cache.store.vocabularies import VOCABULARIES

THREADS = 8  # parts that are read at a time


@dataclass(frozen=True)
class Damage:
    """Parts and tables that are damaged or missing.

    Attributes:
        parts: numbers of committed parts whose record or arrays are damaged.
        missing: numbers of parts that are not committed.
        tables: damage outside parts: keys of metadata, `samples.parquet`, `vocabularies/NAME`.
    """

    parts: list[int]
    missing: list[int]
    tables: list[str]

    def __bool__(self) -> bool:
        return bool(self.parts or self.missing or self.tables)


def verify_store(store: CacheStore, on_part: Callable[[], object] = lambda: None) -> Damage:
    """Read everything that is stored and compare it with its checksums.

    Args:
        on_part: called after each part.

    Raises:
        CacheUnreachableError: the store does not answer; the cache may be intact.
    """

    def is_intact(part: int) -> bool:
        found = store.parts.is_intact(part)
        on_part()
        return found

    committed = store.parts.committed()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            damaged = [p for p, ok in zip(committed, pool.map(is_intact, committed), strict=True) if not ok]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    tables = store.damaged_metadata()
    if not store.samples_are_intact():
        tables.append(SAMPLES)
    tables += [f"{VOCABULARIES}/{name}" for name in store.damaged_vocabularies()]
    return Damage(damaged, store.parts.missing(), tables)
