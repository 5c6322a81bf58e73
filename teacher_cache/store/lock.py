"""The lock of a build: one build at a time writes to a cache.

On a disk the operating system releases the lock with the process. In an object store the lock is an object
that only one writer can create; its owner renews it, and a lock that is no longer renewed is taken over.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

from teacher_cache.errors import CacheBusyError, RppError
from teacher_cache.files.lock_file import file_lock
from teacher_cache.store.folder import Folder
from teacher_cache.store.local_folder import LocalFolder, disk_errors
from teacher_cache.store.remote_folder import RemoteFolder

LOCK = "build.lock"
RENEW_SECONDS = 60.0
DEAD_AFTER_SECONDS = 300.0  # five missed renewals; clocks of machines may differ by a minute or two
SETTLE_SECONDS = 2.0  # if two builds take over a dead lock, the one that writes last has it


@contextmanager
def build_lock(folder: Folder) -> Iterator[None]:
    """Lock a cache for one build.

    Raises:
        CacheBusyError: another build has the lock.
    """
    if isinstance(folder, LocalFolder):
        busy = CacheBusyError(f"another build is writing {folder.url}; wait for it or stop it")
        with ExitStack() as lock:
            with disk_errors(folder.url):
                lock.enter_context(file_lock(folder.root / LOCK, busy))
            yield
    elif isinstance(folder, RemoteFolder):
        with _ObjectLock(folder):
            yield


class _ObjectLock:
    """The lock object: owner, host, process and the time of its last renewal."""

    owners: set[str] = set()  # noqa: RUF012 - owners in this process

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder
        self._owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="build-lock")

    def __enter__(self) -> None:
        try:
            self._folder.create(LOCK, self._content())
        except FileExistsError:
            self._take_over()
        self.owners.add(self._owner)
        self._renewing.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._renewing.join()
        self.owners.discard(self._owner)
        # the error that stopped the build matters more than a lock that stays until it counts as dead
        with suppress(RppError):
            if self._holder().get("owner") == self._owner:
                self._folder.remove(LOCK)

    def _content(self) -> bytes:
        record = {"owner": self._owner, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        return json.dumps(record).encode()

    def _holder(self) -> dict[str, Any]:
        """Return the current lock record; empty if there is none or it is not readable."""
        with suppress(FileNotFoundError, ValueError):
            record = json.loads(self._folder.read(LOCK))
            if isinstance(record, dict):
                return record
        return {}

    def _take_over(self) -> None:
        holder = self._holder()
        silent = time.time() - float(holder.get("time", 0))
        if silent < DEAD_AFTER_SECONDS and not self._died_here(holder):
            raise CacheBusyError(
                f"another build is writing {self._folder.url} (process {holder.get('pid')} on "
                f"{holder.get('host')}, last seen {timedelta(seconds=round(silent))} ago); wait for it or "
                f"stop it: one that was killed counts as dead after {timedelta(seconds=DEAD_AFTER_SECONDS)}"
            )
        self._folder.write(LOCK, self._content())
        time.sleep(SETTLE_SECONDS)
        winner = self._holder()
        if winner.get("owner") != self._owner:
            raise CacheBusyError(
                f"another build has just started to write {self._folder.url} (process {winner.get('pid')} on "
                f"{winner.get('host')})"
            )

    def _died_here(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
            return False
        if holder["pid"] == os.getpid():  # a restarted container has the same host and process
            return holder["owner"] not in self.owners
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            # if the store is unreachable the build itself stops
            with suppress(RppError):
                if self._holder().get("owner") != self._owner:
                    return
                self._folder.write(LOCK, self._content())
