"""A run's folder: creating, locking and writing it. What its files record is read in `record.py`."""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from student_train.runs.record import METRICS, RUN_FORMAT, SETTINGS, has_steps, last_metrics, read_metrics
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write_text
from teacher_cache.files.lock_file import file_lock

BAD_STEP = "bad-step.json"  # the samples of a step whose loss or gradient was not finite
LOCK = "run.lock"


class RunFolder:
    """The folder of one run: `settings.json`, `metrics.jsonl`, `bad-step.json` and the lock."""

    def __init__(self, out: Path, writes: bool = True, lock: bool = True) -> None:
        """Args:
        writes: false in a process of several that leaves writing to the first one.
        lock: whether to lock the folder, so that no other process trains in it.
        """
        self.out, self._writes, self._locks = out, writes, lock
        self._lock = ExitStack()

    def create(self, record: dict[str, Any]) -> None:
        """Create the folder, lock it, and write `settings.json`. A run without any step is replaced.

        Raises:
            UsageError: the folder has a run, another process trains in it, or it cannot be written.
        """
        if not self._writes:
            return
        with _writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._acquire_lock()
            if has_steps(self.out):
                raise UsageError(
                    f"{self.out} already has a run; choose another --out, or resume with --resume"
                )
            self._write_settings(record)

    def resume(self) -> None:
        """Lock the folder of a run that is to be resumed.

        Raises:
            UsageError: another process trains in it, or it cannot be written.
        """
        if self._writes:
            with _writing(self.out):
                self._acquire_lock()

    def update(self, record: dict[str, Any], changes: dict[str, Any]) -> None:
        """Write where the inputs of a resumed run are now, and give a run of an earlier version the current
        format: that version would not find the checkpoint.

        Args:
            record: the run's `settings.json`.
            changes: its fields of today that differ or are missing.

        Raises:
            UsageError: it cannot be written.
        """
        updated = {**record, **changes, "format_version": RUN_FORMAT}
        if self._writes and updated != record:
            with _writing(self.out):
                self._write_settings(updated)

    def drop_metrics(self, after: int) -> None:
        """Remove the lines of `metrics.jsonl` that belong to later steps.

        Raises:
            UsageError: it cannot be written.
        """
        if self._writes:
            kept = [json.dumps(line) + "\n" for line in read_metrics(self.out) if line["step"] <= after]
            with _writing(self.out):
                atomic_write_text(self.out / METRICS, "".join(kept))

    def _write_settings(self, record: dict[str, Any]) -> None:
        atomic_write_text(self.out / SETTINGS, json.dumps(record, indent=1, ensure_ascii=False))

    def _acquire_lock(self) -> None:
        """Lock the folder: one process trains in it. The lock ends with the process; forked workers do not
        have it."""
        busy = f"another process is training in {self.out}; wait for it, stop it, or choose another --out"
        if self._locks:
            self._lock.enter_context(file_lock(self.out / LOCK, UsageError(busy)))

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`.

        Raises:
            RppError: it cannot be written, as on a full disk.
        """
        if not self._writes:
            return
        try:
            with open(self.out / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RppError(
                f"{self.out / METRICS} cannot be written ({error.strerror}); resume from the last checkpoint "
                f"with --out {self.out} --resume"
            ) from error

    def write_bad_step(self, record: dict[str, Any]) -> None:
        """Write `bad-step.json`, if possible: the run ends in either case."""
        if self._writes:
            with suppress(OSError, UsageError):
                atomic_write_text(self.out / BAD_STEP, json.dumps(record, ensure_ascii=False))

    def last_loss(self) -> float:
        """The loss of the last line of `metrics.jsonl`; NaN without one, and in a process that does not
        write."""
        line = last_metrics(self.out) if self._writes else None
        return math.nan if line is None else float(line["loss"])


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
