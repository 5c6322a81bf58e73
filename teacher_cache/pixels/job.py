"""What decodes one image into a batch."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class PixelJob(Protocol):
    """Decodes images of one source. A process that decodes gets a pickled copy.

    Its module must not import torch, which takes seconds in each process.
    """

    def __call__(self, request: Any, into: NDArray[np.uint8]) -> Any:
        """Fill `into` [V, H, W, 3] with the pixels of an image's views; return what the caller wants to know.

        An image that cannot be read leaves zeros, and is reported in what is returned: exceptions are bugs.

        Args:
            request: which image, as plain values.
        """
        ...
