"""Decoders are found by the first bytes of an image."""

import numpy as np
import pytest
from numpy.typing import NDArray

from teacher_cache.images import decode
from teacher_cache.images.decode import Decoder, decode_image
from tests.teacher_cache.inputs import encoded, picture


def test_a_decoder_is_found_by_the_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    gif = Decoder("tests.teacher_cache.images.test_decode:decode_white", (".gif",), (b"GIF87a", b"GIF89a"))
    monkeypatch.setitem(decode.DECODERS, "gif", gif)
    assert (decode_image(encoded(picture(0), "GIF")) == 255).all()
    assert not (decode_image(encoded(picture(0), "PNG")) == 255).all()


def decode_white(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), 255, dtype=np.uint8)
