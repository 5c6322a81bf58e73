"""Small real inputs of stage one: JPEG bytes, tar shards, image folders, vocabulary files, settings."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from PIL import Image

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import BuildSettings
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable

ANIMALS = ("cat", "dog", "great horned owl", "axolotl", "sea urchin")
ANIMAL_VOCABULARY = Vocabulary(ANIMALS, ANIMALS)
SYNSETS = Vocabulary(("tench", "goldfish", "great white shark"), ("n01440764", "n01443537", "n01484850"))


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """An RGB picture with smooth colours and noise, a function of its arguments alone."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), "RGB")
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    noisy = smooth + random.integers(-40, 41, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), "RGB")


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int, width: int = 64, height: int = 48) -> bytes:
    """Bytes of a JPEG file, a function of the arguments alone."""
    return encoded(picture(seed, width, height), quality=90)


def write_shard(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar of (member name, content) in the given order; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def webdataset_members(
    first: int, count: int, labels: Mapping[int, int] | None = None, **size: int
) -> list[tuple[str, bytes]]:
    """Members of `count` WebDataset samples: 000007.cls, 000007.jpg, ...; label = number modulo 5."""
    members = []
    for number in range(first, first + count):
        label = number % len(ANIMALS) if labels is None else labels[number]
        members.append((f"{number:06d}.cls", str(label).encode()))
        members.append((f"{number:06d}.jpg", jpeg(number, **size)))
    return members


def write_shards(folder: Path, shards: int = 2, samples: int = 6, **size: int) -> Path:
    """`shards` WebDataset tars of `samples` JPEGs each; returns the folder."""
    for shard in range(shards):
        members = webdataset_members(shard * samples, samples, **size)
        write_shard(folder / f"shard-{shard:03d}.tar", members)
    return folder


def write_folder(folder: Path, classes: Iterable[str] = ANIMALS, images: int = 2) -> Path:
    """An image folder: a subfolder a class with some JPEGs each; returns the folder."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            (folder / name / f"{i}.jpg").write_bytes(jpeg(100 * c + i))
    return folder


def write_outer_tar(path: Path, folder: Path) -> Path:
    """One tar that holds the tars of a folder, as ImageNet-21K is published; returns its path."""
    members = [(f"release/{tar.name}", tar.read_bytes()) for tar in sorted(folder.glob("*.tar"))]
    return write_shard(path, members)


def write_parquet(
    path: Path,
    images: Sequence[Mapping[str, Any] | None],
    labels: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    rows_a_group: int = 4,
    columns: tuple[str, str] = ("image", "label"),
    **options: Any,
) -> Path:
    """A Parquet file as Hugging Face's `datasets` writes it: structs of bytes and path, perhaps labels, and
    the names of the classes in the schema's metadata; returns its path."""
    image, label = columns
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(images, struct)})
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if labels is not None:
        table = table.append_column(label, pa.array(labels))
        features[label] = {"dtype": "int64", "_type": "Value"}
    if classes is not None:
        features[label] = {"names": list(classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows_a_group, **options)
    return path


def write_names(path: Path, names: Iterable[str] = ANIMALS) -> Path:
    """A vocabulary file, a name a line; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


def indexed(source: Path | str, vocabulary: Vocabulary = ANIMAL_VOCABULARY) -> SampleTable:
    """The sample table of a source."""
    return index_images(str(source), vocabulary)[0]


def contents(samples: SampleTable) -> dict[str, bytes]:
    """Bytes of every sample by key, read as the build reads them."""
    reader = ImageReader()
    keys = samples.keys(slice(None))
    return dict(zip(keys, (reader.read(place) for place in samples.locations(slice(None))), strict=True))


def settings(images: Path | str, classes: Path | str, out: Path, teacher: Path, **more: Any) -> BuildSettings:
    """Settings of a small build on the CPU; parts of three samples unless told."""
    small = {"part_size": 3, "batch_size": 4, "threads": 2, "device": "cpu"}
    return BuildSettings(
        images=str(images), classes=str(classes), out=out, teacher=str(teacher), **small | more
    )


def decoded_arrays(cache: Path) -> dict[str, np.ndarray]:
    """All per-sample arrays of a cache, decoded by zarr alone."""
    group = zarr.open_group(cache, mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def assert_same_arrays(one: Path, other: Path) -> None:
    """All per-sample arrays and the class features of two caches are equal to the last bit."""
    there = decoded_arrays(other)
    for name, values in decoded_arrays(one).items():
        np.testing.assert_array_equal(values, there[name], err_msg=name)
    for cache in (one, other):
        assert sorted(path.name for path in (cache / "parts").glob("*.json")) == sorted(
            path.name for path in (one / "parts").glob("*.json")
        )


def part_record(cache: Path, part: int) -> dict[str, Any]:
    """The JSON of a committed part."""
    record: dict[str, Any] = json.loads((cache / "parts" / f"{part:06d}.json").read_text())
    return record
