"""A process that decodes: takes pieces of batches from a pipe and writes pixels into shared memory.

All processes read the same pipe of tasks, so that whichever is free takes the next piece. A task and its
reply are each `TOKEN`s of 16 bytes, which pipes read and write as one; what they stand for is in the file of
messages. The process ends when its parent does.
"""

import json
import mmap
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile

PARENT_CHECK_SECONDS = 1.0
TOKEN = struct.Struct("<QQ")  # offset of a message, and its bytes
MOST_TEXT = 8000  # characters of a traceback


@dataclass(frozen=True)
class ProcessOptions:
    """What a process is started with: descriptors, sizes in bytes, and its parent.

    Attributes:
        job_bytes: size of the pickled job, which is the first message.
        message_bytes: the reply to a message is that much behind it.
        reply_bytes: the most of a reply.
        nice: added to the process's niceness.
        pillow: what the program has set in Pillow, `LOAD_TRUNCATED_IMAGES` and `MAX_IMAGE_PIXELS`.
    """

    tasks: int
    replies: int
    messages: int
    pixels: int
    slot_bytes: int
    job_bytes: int
    message_bytes: int
    reply_bytes: int
    nice: int
    parent: int
    pillow: tuple[bool, int | None]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors that the process inherits."""
        return self.tasks, self.replies, self.messages, self.pixels

    def command(self, python: str) -> list[str]:
        """Command line of the process. It imports the same files as this one, and no main module."""
        start = (
            "import json, sys\n"
            "sys.path[:] = json.loads(sys.argv[1])\n"
            "from teacher_cache.pixels.process import main\n"
            "main(sys.argv[2])"
        )
        utf8 = f"utf8={sys.flags.utf8_mode}"
        return [python, "-X", utf8, "-c", start, json.dumps([*map(str, sys.path)]), json.dumps(asdict(self))]


@dataclass(frozen=True)
class Piece:
    """Images of a batch, for one process.

    Attributes:
        slot: block of the batch.
        shape: of the batch, [V, B, H, W, 3].
        requests: place in the batch, and what the job takes.
    """

    slot: int
    shape: tuple[int, ...]
    requests: list[tuple[int, Any]]


@dataclass(frozen=True)
class Failure:
    """The traceback of an exception that the job does not report: a bug, or no memory."""

    text: str


def main(options: str) -> None:
    """Decode until the pipe of tasks is closed."""
    process = ProcessOptions(**json.loads(options))
    threading.Thread(target=_end_with_parent, args=(process.parent,), daemon=True).start()
    os.nice(process.nice)
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = process.pillow
    job = pickle.loads(os.pread(process.messages, process.job_bytes, 0))
    slots: dict[int, mmap.mmap] = {}
    while token := next_token(process.tasks):
        offset, length = TOKEN.unpack(token)
        piece: Piece = pickle.loads(os.pread(process.messages, length, offset))
        if piece.slot not in slots:
            place = piece.slot * process.slot_bytes
            slots[piece.slot] = mmap.mmap(process.pixels, process.slot_bytes, offset=place)
        try:
            pixels = np.ndarray(piece.shape, np.uint8, slots[piece.slot])
            replies: Any = [job(request, pixels[:, place]) for place, request in piece.requests]
        except Exception:
            replies = Failure(traceback.format_exc()[-MOST_TEXT:])
        message = pickle.dumps(replies)
        if len(message) > process.reply_bytes:
            message = pickle.dumps(Failure(f"a reply of {len(message):,} bytes"))
        os.pwrite(process.messages, message, offset + process.message_bytes)
        try:
            os.write(process.replies, TOKEN.pack(offset, len(message)))
        except BrokenPipeError:  # the parent ended
            return


def next_token(tasks: int) -> bytes:
    """Wait for the next token of the pipe of tasks; empty when the parent has closed or emptied it."""
    try:
        return os.read(tasks, TOKEN.size)
    except BlockingIOError:  # the parent ends: to empty the pipe it has stopped all reads from blocking
        return b""


def _end_with_parent(parent: int) -> None:
    """End when the parent has ended, although a fork of it may keep the pipe of tasks open."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)
