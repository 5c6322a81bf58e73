"""Read the headers of many files at a time."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from teacher_cache.images.sources import THREADS
from teacher_cache.progress import Counter, counting

QUIET_SECONDS = 2.0  # progress is shown after this time

File = TypeVar("File")
Result = TypeVar("Result")


def map_files(what: str, index: Callable[[File], Result], files: Sequence[File]) -> list[Result]:
    """Return `index(file)` of each file, in the order of the files, computed on several threads.

    Args:
        what: the files' name in the progress line.
    """
    results: list[Result] = []
    counter: Counter | None = None
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool, ExitStack() as progress:
        try:
            for result in pool.map(index, files):
                if counter is None and time.monotonic() - started > QUIET_SECONDS:
                    counter = progress.enter_context(counting(what, len(files)))
                    counter.start_at(len(results))
                results.append(result)
                if counter:
                    counter()
        except BaseException:  # Ctrl-C does not wait for thousands of files that are still queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
