"""Pixels of views: open_clip's own for view 0, exactly repeatable crops for the others."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as transforms

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import ComputeSettings, ViewPolicy
from teacher_cache.compute.decoding import part_decoders
from teacher_cache.compute.part import PartTask, part_arrays
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.table import SampleTable
from teacher_cache.settings import validated
from teacher_cache.store.header import CacheHeader
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import (
    FULL,
    RATIO,
    PillowRenderer,
    ViewRenderer,
    draw_crop,
    evaluation_crop,
    normalise,
)
from tests.teacher_cache.inputs import ANIMALS, jpeg, picture, settings

SIZES = [(64, 48), (48, 64), (32, 32), (31, 33), (500, 20), (20, 500), (7, 9), (1, 1), (333, 251)]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
WHOLE = np.array([0, 0, FULL, FULL, 0], dtype=np.uint16)


def preprocessing(**options: object) -> PreprocessCfg:
    return PreprocessCfg(**{"size": 32, "mean": MEAN, "std": STD} | options)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest", "fill_color": 127},
        {"size": (32, 48)},
    ],
    ids=str,
)
def test_view_0_is_open_clips_own_preprocessing_to_the_last_bit(
    options: dict[str, object], width: int, height: int
) -> None:
    preprocess = preprocessing(**options)
    image = picture(width, width, height)
    expected = image_transform_v2(preprocess, is_train=False)(image)
    pixels = ViewRenderer(preprocess).render_evaluation(np.asarray(image))
    assert pixels.dtype == np.uint8
    shown = (expected * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    np.testing.assert_array_equal(pixels, shown.round().to(torch.uint8).numpy())
    plain = ViewRenderer(preprocess).plain
    assert isinstance(plain, PillowRenderer), "without torch"
    np.testing.assert_array_equal(plain.draw(image, 0, WHOLE).transpose(2, 0, 1), pixels)
    found = normalise(torch.from_numpy(pixels)[None], MEAN, STD)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_normalise_does_not_change_its_input() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    found = normalise(pixels, (0.5, 0.5, 0.5), (0.5, 0.25, 0.125))
    assert pixels.flatten().tolist() == list(range(48))
    assert found[0, 1, 0, 0].item() == pytest.approx((16 / 255 - 0.5) / 0.25)


policies = st.builds(
    ViewPolicy,
    views=st.just(4),
    view_seed=st.integers(0, 2**40),
    view_scale_min=st.floats(0.01, 1.0),
    view_flip=st.floats(0.0, 1.0),
)
sides = st.integers(1, 90)


@given(policies, st.integers(0, 2**31), st.integers(1, 1023), st.integers(1, 20_000), st.integers(1, 20_000))
def test_a_crop_is_within_the_image_and_a_function_of_seed_row_view_and_size(
    policy: ViewPolicy, row: int, view: int, width: int, height: int
) -> None:
    crop = draw_crop(policy, row, view, width, height)
    draw_crop(policy, row + 1, view, width, height)  # what else was drawn before does not matter
    np.testing.assert_array_equal(crop, draw_crop(policy, row, view, width, height))
    assert crop.dtype == np.uint16
    left, top, w, h, flip = (int(value) for value in crop)
    # each value is rounded by itself, so a sum may be one unit over
    assert left + w <= FULL + 1
    assert top + h <= FULL + 1
    assert flip in (0, 1)


def test_rows_views_and_seeds_have_crops_of_their_own() -> None:
    drawn = [
        tuple(draw_crop(ViewPolicy(view_seed=seed), row, view, 640, 480)[:4])
        for seed in range(4)
        for row in range(10)
        for view in range(1, 6)
    ]
    assert len(set(drawn)) == len(drawn)


def test_the_number_of_views_does_not_change_the_crops_of_earlier_ones() -> None:
    few, many = ViewPolicy(views=2, view_seed=1), ViewPolicy(views=9, view_seed=1)
    np.testing.assert_array_equal(draw_crop(few, 3, 1, 64, 48), draw_crop(many, 3, 1, 64, 48))


@pytest.mark.parametrize(("width", "height"), [(1000, 1000), (1500, 500)])
def test_crops_are_distributed_as_torchvisions_random_resized_crop(width: int, height: int) -> None:
    policy, draws = ViewPolicy(view_scale_min=0.08), 3000
    crops = np.array([draw_crop(policy, row, 1, width, height)[:4] for row in range(draws)]) / FULL
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    boxes = [RandomResizedCrop.get_params(blank, [0.08, 1], list(RATIO)) for _ in range(draws)]
    theirs = np.array([(x / width, y / height, w / width, h / height) for y, x, h, w in boxes])

    def facts(boxes_N4: np.ndarray) -> np.ndarray:
        left, top, w, h = boxes_N4.T
        ratio = w * width / (h * height)
        return np.stack([w * h, np.log(ratio), w, h, left, top, left + w, top + h])

    quantiles = [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]
    ours = np.quantile(facts(crops), quantiles, axis=1)
    np.testing.assert_allclose(ours, np.quantile(facts(theirs), quantiles, axis=1), atol=0.05)


@pytest.mark.parametrize(("probability", "flips"), [(0.0, 0), (1.0, 50)])
def test_flips_follow_their_probability(probability: float, flips: int) -> None:
    policy = ViewPolicy(view_flip=probability)
    assert sum(int(draw_crop(policy, row, 1, 64, 48)[4]) for row in range(50)) == flips


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000)])
def test_an_extreme_aspect_takes_the_largest_box_of_an_allowed_ratio(width: int, height: int) -> None:
    left, top, w, h, _ = draw_crop(ViewPolicy(view_scale_min=1.0), 0, 1, width, height) / FULL
    assert 0.74 <= w * width / (h * height) <= 1.34
    assert max(w, h) == 1
    assert left + w / 2 == pytest.approx(0.5, abs=1e-4)
    assert top + h / 2 == pytest.approx(0.5, abs=1e-4)


def plain_view(image: Image.Image, crop: np.ndarray, size: int) -> np.ndarray:
    """A stored crop turned into pixels, written plainly: cut, resize, flip."""
    left, top, w, h = (value / 65535 for value in crop[:4].tolist())
    x0, x1 = round(left * image.width), round((left + w) * image.width)
    y0, y1 = round(top * image.height), round((top + h) * image.height)
    resized = transforms.resize(image.crop((x0, y0, x1, y1)), [size, size], InterpolationMode.BICUBIC)
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if crop[4] else pixels


@given(policies, st.integers(0, 10**9), st.integers(1, 3), st.integers(8, 90), st.integers(8, 90))
@example_settings(max_examples=60, deadline=None)
def test_a_replayed_crop_gives_the_same_pixels(
    policy: ViewPolicy, row: int, view: int, width: int, height: int
) -> None:
    """The stored uint16 box is rendered again by another renderer, after a round trip through bytes."""
    image = picture(1, width, height)
    crop = draw_crop(policy, row, view, width, height)
    given_to_teacher = ViewRenderer(preprocessing()).render(np.asarray(image), view, crop)
    stored = np.frombuffer(crop.tobytes(), dtype=np.uint16)
    replayed = ViewRenderer(preprocessing()).render(np.asarray(image), view, stored)
    np.testing.assert_array_equal(replayed, given_to_teacher)
    if min(int(crop[2]) * width, int(crop[3]) * height) > 2 * FULL:
        np.testing.assert_array_equal(given_to_teacher, plain_view(image, crop, 32))


@given(st.lists(st.integers(0, FULL), min_size=4, max_size=4), st.integers(0, 1), sides, sides)
@example_settings(max_examples=60, deadline=None)
def test_any_stored_box_shows_at_least_a_pixel_of_the_image(
    box: list[int], flip: int, width: int, height: int
) -> None:
    crop = np.array([*box, flip], dtype=np.uint16)
    white = Image.new("RGB", (width, height), (255, 255, 255))
    shown = ViewRenderer(preprocessing()).render(np.asarray(white), 1, crop)
    assert shown.shape == (3, 32, 32)
    # Pillow fills what is outside an image with black
    left, top, w, h = box
    if left + w <= FULL and top + h <= FULL:
        assert (shown == 255).all()


@pytest.mark.parametrize("box", [(32768, 0, 32768, FULL), (0, 40_000, FULL, FULL), (FULL, FULL, FULL, FULL)])
def test_a_box_that_ends_outside_the_image_is_filled_with_black_as_by_pillow(
    box: tuple[int, int, int, int],
) -> None:
    image, (left, top, w, h) = picture(1, 60_000, 2), box
    x0, y0 = (min(round(start * side / FULL), side - 1) for start, side in ((left, 60_000), (top, 2)))
    x1, y1 = round((left + w) * 60_000 / FULL), round((top + h) * 2 / FULL)
    assert x1 > 60_000 or y1 > 2
    expected = transforms.resize(image.crop((x0, y0, x1, y1)), [32, 32], InterpolationMode.BICUBIC)
    crop = np.array([*box, 0], dtype=np.uint16)
    found = ViewRenderer(preprocessing()).render(np.asarray(image), 1, crop)
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_a_flipped_crop_is_the_mirror_image() -> None:
    crop = draw_crop(ViewPolicy(view_flip=0), 0, 1, 64, 48)
    renderer, image = ViewRenderer(preprocessing()), np.asarray(picture(0))
    straight, mirrored = (renderer.render(image, 1, np.append(crop[:4], flip)) for flip in (0, 1))
    np.testing.assert_array_equal(straight[:, :, ::-1], mirrored)
    assert (straight != mirrored).any()


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (333, 251), (32, 32), (500, 20)])
@pytest.mark.parametrize("size", [32, (32, 48)])
def test_the_evaluation_crop_is_the_box_that_view_0_shows(
    size: int | tuple[int, int], width: int, height: int
) -> None:
    """Red is the column and green the row, so each pixel shows where it comes from."""
    rows, columns = np.mgrid[0:height, 0:width]
    position = np.stack([255 * columns / (width - 1), 255 * rows / (height - 1), 0 * rows], axis=-1)
    preprocess = preprocessing(size=size)
    image = Image.fromarray(position.round().astype(np.uint8))
    shown = ViewRenderer(preprocess).render_evaluation(np.asarray(image))
    left, top, w, h, flip = evaluation_crop(preprocess, width, height) / FULL
    edges = [shown[0].min(), shown[0].max(), shown[1].min(), shown[1].max()]
    # to one output pixel, half of the kernel and a rounding
    for found, expected, pixels in zip(
        edges, [left, left + w, top, top + h], [w / 32, w / 32, h / 32, h / 32], strict=True
    ):
        assert found / 255 == pytest.approx(expected, abs=2 * max(pixels, 2 / min(width, height) / 10) + 0.02)
    assert flip == 0


def test_resizing_without_a_crop_has_the_complete_image_as_its_evaluation_crop() -> None:
    np.testing.assert_array_equal(evaluation_crop(preprocessing(resize_mode="squash"), 64, 48), WHOLE)


def test_stage_two_gets_the_pixels_that_stage_one_gave_the_teacher(tmp_path, teacher) -> None:
    """The pixels that enter the teacher within `part_arrays`, against those of the stored crops."""
    images = tmp_path / "images"
    images.mkdir()
    for number, (width, height) in enumerate([(64, 48), (48, 64), (33, 40), (200, 30)]):
        (images / f"{number}.jpg").write_bytes(jpeg(number, width, height))
    samples: SampleTable = index_images(str(images), Vocabulary(ANIMALS, ANIMALS))[0]
    asked = settings(images, "", tmp_path / "zarr", teacher, view_policy=ViewPolicy(views=3, view_seed=2))
    plain = RecordingTeacher(load_model(str(teacher)), torch.device("cpu"))
    header = CacheHeader(
        samples=4,
        part_size=4,
        embedding=48,
        classes=len(ANIMALS),
        encoding={"name": "factored"},
        teacher=plain.describe(),
        view_policy=asked.view_policy.model_dump(),
        vocabulary="animals",
        vocabulary_digest="",
        sample_table_digest=samples.digest,
        images=str(images),
        software="",
        passes=[3],
    )
    head = ClassHead(torch.zeros(len(ANIMALS), 48), 1.0)
    how = ComputeSettings(device="cpu", batch_size=4, threads=2)
    with part_decoders(how, header, samples, plain) as decoders:
        arrays = part_arrays(
            PartTask(header, 0, samples), plain, head, batch_size=4, decoders=decoders
        ).arrays
    seen = torch.stack(plain.pixels, dim=1)  # a view of all images at a time
    for row, location in enumerate(samples.locations(slice(None))):
        with open(location.path, "rb") as file:
            image = decode_image(file.read())
        for view in range(3):
            replayed = ViewRenderer(plain.loaded.preprocess).render(image, view, arrays["crops"][row, view])
            np.testing.assert_array_equal(replayed, seen[row, view].numpy())
    assert (seen[:, 1] != seen[:, 2]).any()


class RecordingTeacher(Teacher):
    """A teacher that keeps the pixels it was given."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.pixels: list[torch.Tensor] = []

    def image_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        self.pixels.append(pixels_BCHW.clone())
        return super().image_features(pixels_BCHW)


def test_the_largest_seed_draws_and_a_larger_one_is_refused() -> None:
    assert draw_crop(ViewPolicy(view_seed=2**128 - 1), 0, 1, 64, 64).shape == (5,)
    with pytest.raises(UsageError, match=r"^--view-seed \d+: Input should be less than or equal to"):
        validated(ViewPolicy, {"view_seed": 2**128})
