"""Codecs of rendered views: exact ones, the lossy one, and their names in the settings."""

from typing import get_args

import numpy as np
import pytest

from teacher_cache.command_settings import Codec
from teacher_cache.images.decode import decode_image
from teacher_cache.images.view_codecs import VIEW_CODECS, encode_view, stored_view
from tests.teacher_cache.inputs import picture


def test_the_settings_name_every_codec() -> None:
    assert get_args(Codec) == tuple(VIEW_CODECS)


@pytest.mark.parametrize("codec", VIEW_CODECS)
def test_stored_pixels_are_what_readers_decode(codec: str) -> None:
    pixels = np.asarray(picture(3, 33, 32))
    content, found = stored_view(pixels, codec)
    assert content == encode_view(pixels, codec)
    np.testing.assert_array_equal(decode_image(content), found)
    difference = np.abs(found.astype(int) - pixels)
    assert (difference.max() == 0) == (codec != "jpeg95")
    assert difference.mean() < 4  # noise of ±40


def test_jpeg_keeps_the_colours_of_single_pixels() -> None:
    """With subsampled colours a column of red beside blue becomes purple."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, ::2, 0], pixels[:, 1::2, 2] = 255, 255
    _, found = stored_view(pixels, "jpeg95")
    assert np.abs(found.astype(int) - pixels).mean() < 10
