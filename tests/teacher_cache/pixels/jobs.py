"""Jobs of the tests, which processes import: without torch."""

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile


def fill(request: int, into: NDArray[np.uint8]) -> int:
    """Write the number that is asked for."""
    into[:] = request
    return request


def surroundings(request: Any, into: NDArray[np.uint8]) -> dict[str, Any]:
    """What the process has imported, its priority and Pillow's settings."""
    return {
        "modules": set(sys.modules),
        "main": getattr(sys.modules["__main__"], "__file__", None),
        "nice": os.nice(0),
        "pillow": (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
    }


def fail(request: Any, into: NDArray[np.uint8]) -> None:
    """A bug."""
    raise KeyError("not there")


def talk(request: int, into: NDArray[np.uint8]) -> str:
    """A reply of so many characters."""
    return "x" * request
