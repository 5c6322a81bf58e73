"""Tars and folders -> rows: order, places of bytes, labels, and what damaged sources and pictures do."""

import io
import json
import os
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from PIL import Image

from teacher_cache.errors import RppError, UsageError
from teacher_cache.images import (
    ImageReader,
    SampleTable,
    UnreadableImageError,
    decode_image,
    expand_source,
    index_images,
)
from teacher_cache.images.reader import MAX_OPEN_FILES
from teacher_cache.vocabulary import Vocabulary
from tests.teacher_cache.inputs import (
    ANIMALS,
    encoded,
    jpeg,
    picture,
    webdataset_members,
    write_folder,
    write_shard,
    write_shards,
)

ANIMAL_VOCABULARY = Vocabulary(ANIMALS, ANIMALS)
SYNSETS = Vocabulary(("tench", "goldfish", "great white shark"), ("n01440764", "n01443537", "n01484850"))


def indexed(source: Path | str, vocabulary: Vocabulary = ANIMAL_VOCABULARY) -> SampleTable:
    return index_images(str(source), vocabulary)[0]


def contents(samples: SampleTable) -> dict[str, bytes]:
    """Bytes of every sample by key, read as the build reads them."""
    reader = ImageReader()
    keys = samples.keys(slice(None))
    return dict(zip(keys, (reader.read(*place) for place in samples.locations(slice(None))), strict=True))


# Which files a source names


def test_braces_are_expanded_in_order_with_their_zeros(tmp_path: Path) -> None:
    for name in ("a-08", "a-09", "a-10", "a-11", "b-09"):
        write_shard(tmp_path / f"{name}.tar", [("x.jpg", b"")])
    found = expand_source(f"{tmp_path}/{{b,a}}-{{09..09}}.tar")
    assert [path.name for path in found] == ["b-09.tar", "a-09.tar"]
    found = expand_source(f"{tmp_path}/a-{{08..11}}.tar")
    assert [path.name for path in found] == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]


def test_braces_without_leading_zeros_count_plainly(tmp_path: Path) -> None:
    for number in (9, 10):
        write_shard(tmp_path / f"{number}.tar", [("x.jpg", b"")])
    assert [path.name for path in expand_source(f"{tmp_path}/{{9..10}}.tar")] == ["9.tar", "10.tar"]


def test_a_missing_shard_of_a_brace_range_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=2)
    with pytest.raises(UsageError, match=r"shard-002\.tar does not exist"):
        expand_source(f"{tmp_path}/shard-{{000..002}}.tar")


def test_globs_are_expanded_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/9", "a/1", "a/skip"):
        write_shard(tmp_path / f"{name}.tar", [("x.jpg", b"")])
    found = expand_source(f"{tmp_path}/*/[0-9].tar")
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/1.tar", "a/9.tar", "b/2.tar"]


def test_a_folder_of_tars_stands_for_its_tars(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=3, samples=2)
    assert expand_source(str(tmp_path)) == expand_source(f"{tmp_path}/*.tar")
    assert len(indexed(tmp_path)) == 6


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.tar", "{a,b}.tar", ""])
def test_a_source_that_is_not_there_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="image source"):
        index_images(source, ANIMAL_VOCABULARY)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no image here")
    with pytest.raises(UsageError, match="holds no image"):
        indexed(tmp_path)
    shard = write_shard(tmp_path / "empty.tar", [("a.cls", b"0"), ("b.txt", b"x")])
    with pytest.raises(UsageError, match="holds no image"):
        indexed(shard)


def test_two_image_folders_at_once_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, images=1)
    with pytest.raises(UsageError, match="no single image folder"):
        indexed(f"{tmp_path}/{{a,b}}")


# Tar shards


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_and_lengths_give_each_images_bytes(tar_format: int, tmp_path: Path) -> None:
    long = "deep/" * 20 + "x" * 90
    members = [(f"{long}-{number}.jpg", jpeg(number)) for number in range(3)]
    members += [(f"nested/{number}.png", jpeg(number, 20 + number)) for number in range(3)]
    if tar_format != tarfile.USTAR_FORMAT:
        members.append(("Übergröße/名前.webp", jpeg(7)))
        members.append(("y" * 300 + ".jpeg", jpeg(8)))
    shard = write_shard(tmp_path / "shard.tar", members, format=tar_format)
    expected = {name.rsplit(".", 1)[0]: content for name, content in members}
    assert contents(indexed(shard)) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a/", "a/b/", "./"]), st.integers(0, 3000), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@example_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tar_is_indexed_to_its_members_bytes(tmp_path: Path, shapes: list[tuple[str, int, bool]]) -> None:
    members = []
    for number, (folder, size, labelled) in enumerate(shapes):
        if labelled:
            members.append((f"{folder}{number:03d}.cls", b"1"))
        members.append((f"{folder}{number:03d}.jpg", random.Random(number).randbytes(size)))
        members.append((f"{folder}{number:03d}.txt", b"caption"))
    samples = indexed(write_shard(tmp_path / "any.tar", members))
    assert list(contents(samples).values()) == [content for name, content in members if name[-3:] == "jpg"]
    assert samples.labels.tolist() == [1 if labelled else -1 for _, _, labelled in shapes]


def test_rows_stand_in_the_order_of_shards_and_members(tmp_path: Path) -> None:
    write_shard(tmp_path / "1.tar", webdataset_members(50, 3))
    write_shard(tmp_path / "0.tar", list(reversed(webdataset_members(0, 3))))
    samples = indexed(tmp_path)
    expected = [f"{number:06d}" for number in (2, 1, 0, 50, 51, 52)]
    assert samples.keys(slice(None)) == expected
    assert samples.keys(slice(2, 4)) == expected[2:4]
    assert samples.keys(np.array([5, 0])) == [expected[5], expected[0]]
    assert samples.labels.tolist() == [2, 1, 0, 0, 1, 2]


def test_a_sample_takes_one_image_whatever_stands_around_it(tmp_path: Path) -> None:
    members = [
        ("s/a.json", b'{"label": 3}'),
        ("s/a.txt", b"caption"),
        ("s/a.jpg", jpeg(0)),
        ("s/a.mask.png", jpeg(1)),
        ("s/b.seg.PNG", jpeg(2)),
        ("s/b.cls", b"2"),
        ("t/b.jpeg", jpeg(3)),
        ("readme.md", b"text"),
    ]
    samples = indexed(write_shard(tmp_path / "s.tar", members))
    assert contents(samples) == {"s/a": jpeg(0), "s/b": jpeg(2), "t/b": jpeg(3)}
    assert samples.labels.tolist() == [3, 2, -1]


def test_folders_and_links_in_a_tar_are_no_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        folder, link = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("link.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "0.jpg"
        tar.addfile(folder)
        tar.addfile(link)
        member = tarfile.TarInfo("0.jpg")
        member.size = len(jpeg(0))
        tar.addfile(member, io.BytesIO(jpeg(0)))
    assert contents(indexed(tmp_path / "links.tar")) == {"0": jpeg(0)}


@pytest.mark.parametrize("left_out", [600, 1200, 20_000 + 100])
def test_a_truncated_tar_keeps_what_is_whole_and_says_so(left_out: int, tmp_path: Path) -> None:
    members = [(f"{number}.jpg", random.Random(number).randbytes(5000)) for number in range(8)]
    shard = write_shard(tmp_path / "cut.tar", members)
    content = shard.read_bytes()
    end = max(place + size for _, place, size in indexed(shard).locations(slice(None)))
    shard.write_bytes(content[: end - left_out])
    samples, notes = index_images(str(shard), ANIMAL_VOCABULARY)
    kept = contents(samples)
    assert 0 < len(kept) < 8
    assert kept == {name[0]: content for name, content in members[: len(kept)]}
    assert len(kept) == (end - left_out) // (5120 + 512)
    assert any("cut.tar" in note and "tail is left out" in note for note in notes)


def test_of_images_that_share_a_name_the_first_is_taken_with_a_note(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("a.png", jpeg(1)), ("a.jpg", jpeg(2)), ("b.jpg", jpeg(3))]
    samples, notes = index_images(str(write_shard(tmp_path / "twice.tar", members)), ANIMAL_VOCABULARY)
    assert contents(samples) == {"a": jpeg(0), "b": jpeg(3)}
    assert any("twice.tar: 2 images share a sample's name" in note for note in notes)


def test_a_file_that_is_no_tar_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "fake.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UsageError, match=r"fake\.tar is no uncompressed tar"):
        indexed(tmp_path)


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(UsageError, match="unpack compressed"):
        indexed(tmp_path)


def test_an_image_name_that_is_not_utf8_is_indexed(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "latin1.tar", [("caf\xe9.jpg", jpeg(0))], format=tarfile.GNU_FORMAT, encoding="latin-1"
    )
    samples = indexed(shard)
    assert list(contents(samples).values()) == [jpeg(0)]


# Labels


@pytest.mark.parametrize(
    ("name", "content", "label"),
    [
        ("cls", b"3", 3),
        ("cls", b" 4\n", 4),
        ("cls", b"dog", 1),
        ("cls", b"Great_Horned  OWL", 2),
        ("cls", b"-1", -1),
        ("cls", b"-7", -1),
        ("cls", b"", -1),
        ("json", b'{"label": 2}', 2),
        ("json", b'{"cls": "4"}', 4),
        ("json", b'{"class_name": "axolotl", "width": 5}', 3),
        ("json", b'{"caption": "a dog"}', -1),
        ("json", b'{"label": null, "class": 1}', -1),
        ("txt", b"1", -1),
    ],
)
def test_labels_are_read_from_cls_and_json(name: str, content: bytes, label: int, tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "s.tar",
        [("0.jpg", jpeg(0)), (f"0.{name}", content), ("1.cls", b"0"), ("1.jpg", jpeg(1))],
    )
    assert indexed(shard).labels.tolist() == [label, 0]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2", b"5"])
def test_an_unreadable_label_names_its_member(content: bytes, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.json", content), ("0.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=r"s\.tar:0\.json: label is not readable"):
        indexed(shard)


def test_the_synset_in_a_members_or_shards_name_is_its_label(tmp_path: Path) -> None:
    write_shard(tmp_path / "n01443537.tar", [("n01443537_10.JPEG", jpeg(0)), ("other.JPEG", jpeg(1))])
    write_shard(
        tmp_path / "train-0.tar",
        [("n01484850/1.jpg", jpeg(2)), ("n01440764_2.jpg", jpeg(3)), ("plain.jpg", jpeg(4))],
    )
    samples = indexed(tmp_path, SYNSETS)
    assert samples.labels.tolist() == [1, 1, 2, 0, -1]


def test_a_label_file_goes_before_the_synset_in_the_name(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("n01484850_1.jpg", jpeg(2)), ("n01484850_1.cls", b"0")])
    assert indexed(shard, SYNSETS).labels.tolist() == [0]


def test_folders_are_classes_by_id_or_name(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["n01484850", "Tench", "n01443537"], images=1)
    samples = indexed(tmp_path, SYNSETS)
    assert samples.keys(slice(None)) == ["Tench/0.jpg", "n01443537/0.jpg", "n01484850/0.jpg"]
    assert samples.labels.tolist() == [0, 1, 2]


def test_unknown_folder_names_of_the_right_number_are_matched_in_sorted_order(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["class_c", "class_a", "class_b"], images=1)
    samples, notes = index_images(str(tmp_path), SYNSETS)
    assert samples.labels.tolist() == [0, 1, 2]
    assert any("sorted order" in note for note in notes)


def test_a_vocabulary_of_another_number_of_classes_is_refused_naming_both(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["u", "v"], images=1)
    with pytest.raises(UsageError, match=r"has 2 classes \(u, v, \.\.\.\), the vocabulary 3 \(n01440764"):
        indexed(tmp_path, SYNSETS)


@pytest.mark.parametrize("label", ["3", "40000"])
def test_label_indices_beyond_the_vocabulary_are_refused(label: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.cls", label.encode()), ("0.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=rf"go up to {label}, but the vocabulary has 3 classes \(0 to 2\)"):
        indexed(shard, SYNSETS)


def test_a_number_that_can_be_no_class_index_names_its_member(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.cls", b"99999999999999999999"), ("0.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=r"s\.tar:0\.cls: the label 9+ is no class index"):
        indexed(shard)


def test_classes_outside_the_vocabulary_and_without_samples_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["tench", "heron"], images=3)
    samples, notes = index_images(str(tmp_path), SYNSETS)
    assert samples.labels.tolist() == [-1, -1, -1, 0, 0, 0]
    assert notes == [
        "3 samples of 1 classes outside the vocabulary (heron) have no hard label",
        "2 of 3 classes have no sample",
    ]


def test_a_source_without_any_label_is_indexed_and_says_so(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1))])
    samples, notes = index_images(str(shard), ANIMAL_VOCABULARY)
    assert samples.labels.tolist() == [-1, -1]
    assert notes == ["no sample has a hard label"]


# Image folders


def test_a_folders_rows_are_sorted_whatever_order_files_were_written_in(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.jpg" for folder in ("dog", "cat") for number in range(5)]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0, 8, 8))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    assert indexed(tmp_path).keys(slice(None)) == sorted(names)


def test_deeper_folders_keep_the_first_ones_class_and_images_in_the_root_have_none(tmp_path: Path) -> None:
    for name in ("cat/a/b/0.png", "root.jpg", "dog/1.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0))
    samples = indexed(tmp_path)
    assert dict(zip(samples.keys(slice(None)), samples.labels.tolist(), strict=True)) == {
        "root.jpg": -1,
        "cat/a/b/0.png": 0,
        "dog/1.JPG": 1,
    }


def test_a_link_to_an_image_that_is_gone_keeps_its_row(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["cat"], images=2)
    (tmp_path / "cat" / "5.jpg").symlink_to(tmp_path / "gone.jpg")
    samples = indexed(tmp_path)
    assert samples.keys(slice(None)) == ["cat/0.jpg", "cat/1.jpg", "cat/5.jpg"]
    with pytest.raises(UnreadableImageError, match="No such file"):
        ImageReader().read(*samples.locations(slice(2, 3))[0])


def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "cat") + b"/caf\xe9.jpg")).write_bytes(jpeg(0))
    with pytest.raises(UsageError, match=r"caf\\udce9\.jpg.*not UTF-8"):
        indexed(tmp_path)


# The sample table


def test_the_table_survives_being_written_and_read(tmp_path: Path) -> None:
    samples = indexed(write_shards(tmp_path / "shards", shards=2, samples=3))
    samples.write(tmp_path / "samples.parquet")
    read = SampleTable.read(tmp_path / "samples.parquet")
    assert read.digest == samples.digest
    assert read.keys(slice(None)) == samples.keys(slice(None))
    assert read.locations(slice(None)) == samples.locations(slice(None))
    np.testing.assert_array_equal(read.labels, samples.labels)


def test_the_digest_knows_keys_lengths_and_labels_but_not_where_the_images_lie(tmp_path: Path) -> None:
    members = [("0.cls", b"1"), ("0.jpg", jpeg(0)), ("1.cls", b"2"), ("1.jpg", jpeg(1))]
    digest = indexed(write_shard(tmp_path / "a" / "s.tar", members)).digest
    assert indexed(write_shard(tmp_path / "b" / "other.tar", members)).digest == digest
    renamed = [(name.replace("0.", "9."), content) for name, content in members]
    longer = [*members[:1], ("0.jpg", jpeg(0) + b"\0"), *members[2:]]
    relabelled = [("0.cls", b"3"), *members[1:]]
    swapped = members[2:] + members[:2]
    for number, changed in enumerate((renamed, longer, relabelled, swapped, members[:2])):
        assert indexed(write_shard(tmp_path / f"{number}.tar", changed)).digest != digest


# Bytes and pixels


def test_many_threads_read_more_files_than_stay_open(tmp_path: Path) -> None:
    count = MAX_OPEN_FILES + 20
    for number in range(count):
        (tmp_path / f"{number:03d}.jpg").write_bytes(bytes([number]) * 100)
    samples = indexed(tmp_path)
    reader = ImageReader()
    rows = random.Random(0).choices(range(count), k=600)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: reader.read(*samples.locations(slice(row, row + 1))[0]), rows))
    assert read == [bytes([row]) * 100 for row in rows]
    assert len(os.listdir("/proc/self/fd")) < 2 * MAX_OPEN_FILES + 60


def test_a_file_that_became_shorter_is_unreadable_and_a_shard_that_is_gone_stops(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0))])
    place = indexed(shard).locations(slice(None))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UnreadableImageError, match=r"ends after 488 of \d+ bytes"):
        ImageReader().read(*place)
    shard.unlink()
    with pytest.raises(RppError, match=r"cannot read image shard .*s\.tar"):
        ImageReader().read(*place)


BAD_IMAGES = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "cut jpeg": jpeg(0)[:-200],
    "head of a jpeg": jpeg(0)[:20],
    "cut png": encoded(picture(0), "PNG")[:2000],
    "zeros": bytes(5000),
    "broken png": encoded(picture(0), "PNG")[:60] + b"\xff" * 500,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("content", BAD_IMAGES.values(), ids=list(BAD_IMAGES))
def test_a_bad_image_raises_with_a_one_line_reason(content: bytes) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(content)
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged tags
@given(st.integers(0, 10**6), st.integers(1, 40))
@example_settings(max_examples=60, deadline=None)
def test_a_damaged_image_is_a_picture_or_unreadable_but_never_another_error(seed: int, damages: int) -> None:
    source = random.Random(seed)
    kind = source.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
    content = bytearray(encoded(picture(0, 24, 16), kind))
    for _ in range(damages):
        content[source.randrange(len(content))] = source.randrange(256)
    try:
        image = decode_image(bytes(content[: source.randrange(1, 2 * len(content))]))
    except UnreadableImageError:
        return
    assert image.mode == "RGB"


def test_a_decompression_bomb_is_unreadable() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(UnreadableImageError, match="DecompressionBomb"):
        decode_image(bomb)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "PNG"),
        ("I;16", "PNG"),
    ],
)
def test_every_mode_becomes_the_rgb_that_pillows_convert_gives(mode: str, kind: str) -> None:
    """open_clip decodes so: `Image.open(...).convert("RGB")`, in its data pipeline and its transform."""
    content = encoded(
        picture(3).convert("L").convert(mode) if mode == "I;16" else picture(3).convert(mode), kind
    )
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    found = decode_image(content)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_exif_rotation_is_not_applied() -> None:
    """open_clip does not apply it either; a teacher that saw upright pictures would differ from its own."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    content = encoded(picture(0, 64, 48), exif=exif)
    assert decode_image(content).size == (64, 48)


def test_the_first_frame_of_an_animation_is_its_picture() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_a_json_label_of_a_large_record_is_found(tmp_path: Path) -> None:
    record = {"caption": "x" * 20_000, "synset": "n01484850"}
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("0.json", json.dumps(record).encode())])
    assert indexed(shard, SYNSETS).labels.tolist() == [2]
