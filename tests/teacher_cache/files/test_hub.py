"""Images, caches and weights behind `hf://`, through huggingface_hub itself and a local server."""

import pickle
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.hub import download, refusal
from teacher_cache.files.remote import ask, filesystem, local_file
from teacher_cache.images.index import index_images
from teacher_cache.images.sources import expand_source
from teacher_cache.preflight import require_model
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.teacher.openclip import load_model, weights_digest
from tests.models import write_model
from tests.teacher_cache.files.hub_server import COMMIT, Hub
from tests.teacher_cache.files.hub_server import hub as hub
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    ANIMALS,
    contents,
    indexed,
    jpeg,
    settings,
    write_folder,
    write_names,
    write_parquet,
    write_shard,
    write_shards,
)

PETS = "hf://datasets/org/pets"


@pytest.fixture
def pets(hub: Hub) -> Path:
    """A data set with shards, Parquet and a folder of images."""
    folder = hub.folder / "org" / "pets"
    write_shards(folder / "shards", shards=3, samples=2)
    write_folder(folder / "[2021] set", images=1)
    images = [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(4)]
    write_parquet(folder / "data" / "train-0.parquet", images, [0, 1, 2, 3], ANIMALS)
    return folder


@pytest.mark.parametrize("place", ["shards", "data", "[2021] set", "shards/shard-001.tar"])
def test_every_kind_of_source_is_read_from_the_hub(place: str, pets: Path) -> None:
    here, there = indexed(pets / place), indexed(f"{PETS}/{place}")
    assert there.digest == here.digest
    assert contents(there) == contents(here)


def test_patterns_and_revisions(pets: Path) -> None:
    every = [f"{PETS}/shards/shard-{n:03d}.tar" for n in range(3)]
    assert expand_source(f"{PETS}/shards/*.tar") == every
    assert expand_source(f"{PETS}/shards/shard-{{000..002}}.tar") == every
    assert expand_source(f"{PETS}/[[]2021] set/ca*") == [f"{PETS}/[2021] set/cat"]
    assert expand_source(f"{PETS}/[2021] set/ca*") == [f"{PETS}/[2021] set/cat"]
    assert expand_source(f"{PETS}@v2/shards/*1.tar") == [f"{PETS}@v2/shards/shard-001.tar"]


def test_only_the_bytes_of_the_images_are_fetched(pets: Path, hub: Hub) -> None:
    write_shard(pets / "large" / "0.tar", [("big.bin", bytes(20_000_000)), ("0.jpg", jpeg(0))])
    samples = indexed(f"{PETS}/large/0.tar")
    hub.sent = 0
    assert contents(samples) == {"0": jpeg(0)}
    assert hub.sent == len(jpeg(0))


def test_a_changed_shard_is_noticed_and_an_equal_one_is_not_read_again(pets: Path, hub: Hub) -> None:
    known = indexed(f"{PETS}/shards")
    hub.sent = 0
    assert index_images(f"{PETS}/shards", ANIMAL_VOCABULARY, known)[0] is known
    assert hub.sent == 0
    write_shard(
        pets / "shards" / "shard-002.tar", [("7.jpg", jpeg(7)), ("8.jpg", jpeg(8)), ("9.jpg", jpeg(9))]
    )
    assert len(index_images(f"{PETS}/shards", ANIMAL_VOCABULARY, known)[0]) == 7


def test_many_files_of_a_folder_cost_one_listing(pets: Path, hub: Hub) -> None:
    hub.requests.clear()
    expand_source(f"{PETS}/shards/shard-{{000..002}}.tar")
    assert len([path for _, path in hub.requests if "/tree/" in path]) <= 3


def test_the_file_system_can_be_pickled(pets: Path) -> None:
    files, path = filesystem(f"{PETS}/shards/shard-000.tar")
    again = pickle.loads(pickle.dumps(files))
    assert again.cat_file(path, start=0, end=6) == b"000000"


def test_the_token_of_the_hubs_login_is_used(
    pets: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["org/pets"] = "hf_secret"
    private = r"no such repository, or it is private; log in with hf auth login, or set HF_TOKEN"
    with pytest.raises(UsageError, match=private):
        indexed(f"{PETS}/shards")
    (tmp_path / "token").write_text("hf_secret")
    assert len(indexed(f"{PETS}/shards")) == 6
    (tmp_path / "token").unlink()
    with pytest.raises(UsageError, match=private):
        local_file(f"{PETS}/shards/shard-000.tar")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert Path(local_file(f"{PETS}/shards/shard-000.tar")).stat().st_size > 0


def test_a_gated_repository_is_named_without_another_try(pets: Path, hub: Hub) -> None:
    hub.gated.add("org/pets")
    for read in (lambda: indexed(f"{PETS}/shards/shard-000.tar"), lambda: local_file("hf://org/pets/data/a")):
        with pytest.raises(
            UsageError, match=r"is gated: accept its conditions on the hub's page, then log in"
        ):
            read()
    files = [path for _, path in hub.requests if "/resolve/" in path]
    assert len(files) == 2


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("datasets/org/pets/none.tar", "none.tar does not exist"),
        ("datasets/org/none/*.tar", "the hub has no such repository, or it is private"),
        ("datasets/org/none/a.tar", "the hub has no such repository, or it is private"),
        ("datasets", "is not a place on the hub; expected hf://datasets/ORG/NAME/PATH"),
        ("datasets/org", "is not a place on the hub; expected hf://datasets/ORG/NAME/PATH"),
    ],
)
def test_what_is_not_there_is_named(place: str, reason: str, pets: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        indexed(f"hf://{place}")


def test_a_rate_limit_is_waited_for(pets: Path, hub: Hub) -> None:
    indexed(f"{PETS}/shards")  # also what the library asks once
    hub.failing = [429]
    assert len(indexed(f"{PETS}/shards")) == 6
    assert not hub.failing


def test_a_file_is_fetched_into_the_hubs_own_cache(pets: Path, tmp_path: Path) -> None:
    fetched = tmp_path / "hub-cache" / "models--org--pets" / "snapshots" / COMMIT / "shards" / "shard-000.tar"
    assert local_file("hf://org/pets/shards/shard-000.tar") == str(fetched)
    assert fetched.read_bytes() == (pets / "shards" / "shard-000.tar").read_bytes()
    assert local_file("hf://org/pets@v2/shards/shard-001.tar").endswith("shard-001.tar")
    with pytest.raises(UsageError, match="the hub's repository has no such file"):
        local_file("hf://org/pets/none.pt")
    with pytest.raises(UsageError, match="hf://org/pets is not a file on the hub"):
        download("hf://org/pets")
    with pytest.raises(UsageError, match="expected a local file or an hf:// URL"):
        local_file("https://example.org/model.pt")
    assert local_file("model.pt") == "model.pt"


def test_other_errors_are_no_refusal() -> None:
    assert refusal(f"{PETS}/a.tar", ConnectionResetError()) is None
    assert refusal(f"{PETS}/a.tar", FileNotFoundError()) is None


def test_a_cache_is_read_from_the_hub_and_not_written_to_it(pets: Path, hub: Hub, tmp_path: Path) -> None:
    names, teacher = write_names(tmp_path / "names.txt"), write_model(tmp_path / "teacher", "gelu")
    build_cache(settings(f"{PETS}/shards", names, tmp_path / "zarr", teacher))
    here = open_cache(tmp_path / "zarr")
    assert here.header.images == f"{PETS}/shards"
    shutil.copytree(tmp_path / "zarr", pets / "zarr")
    there = open_cache(f"{PETS}/zarr")
    assert there.soft_labels(slice(None)).equal(here.soft_labels(slice(None)))
    with pytest.raises(
        UsageError, match=r"cannot be written: the hub has no locks; build the cache in a local"
    ):
        build_cache(settings(f"{PETS}/shards", names, f"{PETS}/new", teacher))
    store = CacheStore.open(f"{PETS}/zarr", writable=True)
    with pytest.raises(UsageError, match="the hub has no locks"):
        store.parts.withdraw(0)
    with pytest.raises(UsageError, match="no such repository, or it is private"):
        open_cache("hf://datasets/org/none/zarr")
    assert isinstance(store.folder.fs, HfFileSystem)  # type: ignore[attr-defined]


def test_weights_on_the_hub_are_recorded_by_their_address(hub: Hub) -> None:
    model = open_clip.create_model("ViT-S-32-alt")
    (hub.folder / "org" / "vit").mkdir(parents=True)
    torch.save({"state_dict": model.state_dict()}, hub.folder / "org" / "vit" / "weights.pt")
    place = "hf://org/vit/weights.pt"
    require_model("ViT-S-32-alt", place)
    found = load_model("ViT-S-32-alt", place)
    assert (found.pretrained, found.digest) == (place, weights_digest(model))
    with pytest.raises(UsageError, match="the hub's repository has no such file"):
        load_model("ViT-S-32-alt", "hf://org/vit/none.pt")


@pytest.mark.parametrize(("status", "attempts"), [(429, 3), (503, 3), (404, 1)])
def test_a_rate_limit_that_hides_as_a_missing_file_is_no_missing_file(
    status: int, attempts: int, hub: Hub
) -> None:
    made = []

    def request() -> None:
        made.append(1)
        hub.failing = [status]
        try:
            HfApi(endpoint=hub.url).repo_info("org/pets")
        except HfHubHTTPError as error:
            raise FileNotFoundError(PETS) from error

    with pytest.raises(FileNotFoundError if status == 404 else RppError):
        ask(f"{PETS}/a.tar", request)
    assert len(made) == attempts
