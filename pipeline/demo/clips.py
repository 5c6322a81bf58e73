"""The two packaged CLIPs of the demo, a student and a larger teacher, as open_clip model folders.

    python -m pipeline.demo.clips --out models

writes `models/student` and `models/teacher`. The package has their weights compressed: token embeddings that
no name uses are zero. The README of each folder says how the model was trained.
"""

import gzip
from pathlib import Path
from typing import Annotated

import typer

from teacher_cache.files.atomic_write import atomic_write, make_folder

CLIPS = Path(__file__).parent / "clips"
STUDENT, TEACHER = "student", "teacher"
PACKED = ".gz"


def unpack_clip(name: str, out: Path) -> Path:
    """Write a packaged CLIP as the model folder `out/name`, which open_clip reads as `local-dir:`.

    Files that are there and equal are not written again.

    Args:
        name: `student` or `teacher`.
        out: the folder of the model folder; created if it is missing.

    Returns:
        The model folder.

    Raises:
        UsageError: the folder cannot be created.
    """
    folder = out / name
    make_folder(folder)
    for packed in sorted((CLIPS / name).iterdir()):
        content = packed.read_bytes()
        if packed.suffix == PACKED:
            content = gzip.decompress(content)
        path = folder / packed.name.removesuffix(PACKED)
        if not (path.is_file() and path.read_bytes() == content):
            with atomic_write(path, shared=True) as temporary:
                temporary.write_bytes(content)
    return folder


def pack_weights(path: Path) -> Path:
    """Replace a weights file by its compressed form, `PATH.gz`; equal bytes give equal bytes.

    Returns:
        The compressed file.
    """
    packed = path.with_name(path.name + PACKED)
    with atomic_write(packed) as temporary:
        temporary.write_bytes(gzip.compress(path.read_bytes(), compresslevel=9, mtime=0))
    path.unlink()
    return packed


def main(
    out: Annotated[Path, typer.Option(help="folder for the model folders student and teacher")],
) -> None:
    """Write the packaged student and teacher as open_clip model folders, and print their paths."""
    for name in (STUDENT, TEACHER):
        print(unpack_clip(name, out))


if __name__ == "__main__":
    typer.run(main)
