"""Compares everything that is stored with its checksum."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

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
        pixels: numbers of parts whose views `rpp-cache render` stored, and which are damaged.
    """

    parts: list[int]
    missing: list[int]
    tables: list[str]
    pixels: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.parts or self.missing or self.tables or self.pixels)


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
    # views that the teacher saw belong to their part
    rendered = store.pixels.committed() if store.header.pixels == "none" else []
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            damaged = [p for p, ok in zip(committed, pool.map(is_intact, committed), strict=True) if not ok]
            intact = zip(rendered, pool.map(store.pixels.is_intact, rendered), strict=True)
            pixels = [part for part, ok in intact if not ok]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    tables = store.damaged_metadata()
    if not store.samples_are_intact():
        tables.append(SAMPLES)
    tables += [f"{VOCABULARIES}/{name}" for name in store.damaged_vocabularies()]
    return Damage(damaged, store.parts.missing(), tables, pixels)
