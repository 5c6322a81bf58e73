"""Start worker processes that do not run the user's script again.

`spawn` and `forkserver` import the script in each process, which repeats all of it where it has no
`if __name__ == "__main__":`. Nothing that runs in our workers is defined there.

Private: multiprocessing takes the script from `__spec__` and `__file__` of `sys.modules["__main__"]`, seen in
Python 3.11 to 3.14. If a later version finds it in another way, scripts need that line again.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_lock = threading.Lock()
_blocks = 0  # that run now, in any thread


@contextmanager
def main_not_imported() -> Iterator[None]:
    """Start processes without the main module while the block runs; also those of other threads."""
    global _blocks
    with _lock:
        if _blocks == 0:
            sys.modules["__main__"] = _WithoutFile(sys.modules["__main__"])
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            found = sys.modules["__main__"]
            if _blocks == 0 and isinstance(found, _WithoutFile):
                sys.modules["__main__"] = found.__wrapped__


class _WithoutFile(ModuleType):
    """The main module without the two attributes; all others are read and set there."""

    __wrapped__: ModuleType

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__, module.__doc__)  # sets __spec__ to None
        self.__dict__["__wrapped__"] = module

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__wrapped__, name)
