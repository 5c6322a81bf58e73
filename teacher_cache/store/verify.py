"""Everything that is stored, compared with its checksum."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.samples import SAMPLES
from teacher_cache.store.vocabularies import VOCABULARIES

THREADS = 8  # parts that are read at a time


@dataclass(frozen=True)
class Damage:
    """What is not as it was written.

    Attributes:
        parts: numbers of committed parts whose record or arrays are damaged.
        missing: numbers of parts that were not committed.
        tables: what belongs to no part: keys of metadata, `samples.parquet`, `vocabularies/NAME`.
    """

    parts: list[int]
    missing: list[int]
    tables: list[str]

    def __bool__(self) -> bool:
        return bool(self.parts or self.missing or self.tables)


def verify_store(store: CacheStore, on_part: Callable[[], object] = lambda: None) -> Damage:
    """Read all that is stored and compare it with what was written.

    Args:
        on_part: called after each part.

    Raises:
        CacheUnreachableError: the store does not answer; nothing is said about the cache then.
    """

    def sound(part: int) -> bool:
        found = store.part_is_sound(part)
        on_part()
        return found

    committed = store.committed()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            damaged = [p for p, ok in zip(committed, pool.map(sound, committed), strict=True) if not ok]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    tables = store.damaged_metadata()
    if not store.samples_are_sound():
        tables.append(SAMPLES)
    tables += [f"{VOCABULARIES}/{name}" for name in store.damaged_vocabularies()]
    return Damage(damaged, store.missing(), tables)
