"""Tar shards: WebDataset's, or one tar for each synset, as files or inside one outer tar.

A member's name is only a key: no file of that name is opened or written.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.remote import READ_AHEAD_BYTES, RemoteFile, is_remote
from teacher_cache.images.decode import IMAGE_SUFFIXES
from teacher_cache.images.headers import DamagedTarError, TarMember, tar_members
from teacher_cache.images.labels import SYNSET, read_label, synsets_in
from teacher_cache.images.leftovers import Leftovers, is_plain
from teacher_cache.images.parallel import map_files
from teacher_cache.images.rows import RowBuilder, Rows
from teacher_cache.images.sources import Source, SourceFile
from teacher_cache.images.statements import Statement

LONGEST_LABEL = 1 << 24  # bytes of a .cls or .json; captions and boxes of an image take some KB
LOCAL_BUFFER_BYTES = 8192  # headers are some 100 KB apart: a larger buffer reads images in vain


@dataclass(frozen=True)
class TarSpan:
    """A tar: a file, or a member of an outer tar.

    Attributes:
        file: the file that contains it.
        start, stop: its bytes in that file.
        name: its own name if it is a member.
    """

    file: SourceFile
    start: int
    stop: int
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.file.path}:{self.name}" if self.name else self.file.path

    @property
    def file_name(self) -> str:
        """The tar's own name without folders."""
        return (self.name or self.file.path).rpartition("/")[2]

    def open(self) -> BinaryIO:
        """Open the file that contains it, seekable."""
        if is_remote(self.file.path):
            return io.BufferedReader(RemoteFile(self.file.path, self.file.size), READ_AHEAD_BYTES)
        return open(self.file.path, "rb", buffering=LOCAL_BUFFER_BYTES)


def index_tars(source: Source) -> list[Rows]:
    """Rows of all shards, those of each shard before those of the tars inside it.

    Raises:
        UsageError, RppError: as `index_tar`.
    """
    outer = map_files("shards", index_tar, [TarSpan(file, 0, file.size) for file in source.files])
    inner = iter(map_files("tars in tars", index_tar, [span for _, spans in outer for span in spans]))
    pieces: list[Rows] = []
    for rows, spans in outer:
        pieces.append(rows)
        for _ in spans:
            inside, deeper = next(inner)
            inside.notes += [f"{span}: a tar in a tar in a tar is not read" for span in deeper]
            pieces.append(inside)
    return pieces


def index_tar(span: TarSpan) -> tuple[Rows, list[TarSpan]]:
    """Rows of a tar, and the tars inside it, which are not indexed yet.

    Members that share all before the first dot of the file name are one sample.

    Raises:
        UsageError: not an uncompressed tar, or a label cannot be read.
        RppError: the file cannot be read.
    """
    samples, inner = _Samples(span), list[TarSpan]()
    try:
        with span.open() as file:
            for member in tar_members(file, span.start, span.stop):
                if not is_plain(member.name) and samples.leftovers.has(member.name):
                    continue
                if member.name.endswith(".tar"):
                    stop = member.offset + member.size
                    inner.append(TarSpan(span.file, member.offset, stop, member.name))
                else:
                    samples.add(member, file)
    except DamagedTarError as error:
        if error.position > span.start:
            samples.notes.append(f"{span}: {error}; the rest is left out")
        elif span.name:
            samples.notes.append(f"{span}: not an uncompressed tar ({error}); it is left out")
        else:
            raise UsageError(
                f"{span} is not an uncompressed tar shard ({error}); decompress it first"
            ) from error
    except OSError as error:
        raise RppError(f"cannot read image shard {span}: {error.strerror or error}") from error
    return samples.rows(), inner


class _Samples:
    """Groups the members of a tar into samples."""

    def __init__(self, span: TarSpan) -> None:
        self.span = span
        self.notes: list[str] = []
        self.leftovers = Leftovers()
        self._builder = RowBuilder()
        self._synsets: list[str] = SYNSET.findall(span.file_name)[:1]
        self._more_images = 0
        self._start("")

    def _start(self, stem: str) -> None:
        self._stem = stem
        self._image: TarMember | None = None
        self._cls: list[Statement] = []
        self._json: list[Statement] = []
        self._unreadable: UsageError | None = None

    def add(self, member: TarMember, file: BinaryIO) -> None:
        """Add the next member."""
        folder, _, base = member.name.rpartition("/")
        base, _, extension = base.partition(".")
        if (stem := f"{folder}/{base}") != self._stem:
            self._finish()
            self._start(stem)
        suffix = "." + extension.rpartition(".")[2].lower()
        if suffix in IMAGE_SUFFIXES:
            self._more_images += self._image is not None
            self._image = self._image or member
        elif suffix in (".cls", ".json"):
            where = f"{self.span.file.path}:{member.name}"
            try:
                statements = self._read(member, file, suffix, where)
            except UsageError as error:
                if suffix == ".cls":
                    raise
                self._unreadable = error  # captions and boxes, perhaps, beside a .cls
                return
            if suffix == ".cls":
                self._cls += statements
            else:
                self._json += statements

    def _read(self, member: TarMember, file: BinaryIO, suffix: str, where: str) -> list[Statement]:
        if member.size > LONGEST_LABEL:
            raise UsageError(f"{where}: cannot read the label (it has {member.size:,} bytes)")
        file.seek(member.offset)
        return read_label(file.read(member.size), suffix, where)

    def _finish(self) -> None:
        if self._image is None:
            return
        if self._unreadable is not None and not self._cls:
            raise self._unreadable
        key, path = self._stem.lstrip("/"), self._image.name
        synsets = SYNSET.findall(path) + self._synsets
        if not self._cls and not self._json and synsets == synsets[:1] * len(synsets):
            # one label in one or more places, as in ImageNet's own tars: its millions of images take this way
            name = synsets[0] if synsets else None
            self._builder.append(key, self._image.offset, self._image.size, None, name)
            return
        shard = [Statement("shard", "", None, synset) for synset in self._synsets]
        stated = [*self._cls, *self._json, *synsets_in(path), *shard]
        self._builder.append_stated(key, self._image.offset, self._image.size, stated)

    def rows(self) -> Rows:
        """Return all samples. Call it once, after the last member."""
        self._finish()
        if self._more_images:
            self.notes.append(
                f"{self.span}: {self._more_images} images share a sample's name; "
                "the first of each name is taken"
            )
        table, several = self._builder.table(), self._builder.several
        return Rows(self.span.file.path, table, self.notes, several, self.leftovers)
