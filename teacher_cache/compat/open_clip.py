"""open_clip's vision tower in its three pieces: embedding, blocks, pooling.

Private: `VisionTransformer._embeds` and `._pool`, seen in open_clip 3.2 and 3.3. Where they are gone, the
tower's own `forward` is run with hooks on `visual.transformer`, which is public: the same numbers, at the
price of running it once more.

Shapes: B images, T positions, W tower width, D embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class _EmbeddedError(Exception):
    """Ends a forward pass in front of the blocks."""


def embed(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Input of the first block, [B, T, W].

    Args:
        images: [B, 3, height, width], normalised as the model wants them.
    """
    if hasattr(visual, "_embeds"):
        embedded: Tensor = visual._embeds(images)
        return embedded
    return embed_by_hook(visual, images)


def pool(visual: VisionTransformer, x_BTW: Tensor, images: Tensor) -> Tensor:
    """Image features [B, D] of the output of the last block.

    Args:
        x_BTW: that output; in a tower that reads the class token alone, perhaps of this position only.
        images: as for `embed`.
    """
    if hasattr(visual, "_pool"):
        pooled, _ = visual._pool(x_BTW)
        features: Tensor = pooled if visual.proj is None else pooled @ visual.proj
        return features
    return pool_by_hook(visual, x_BTW, images)


def embed_by_hook(visual: VisionTransformer, images: Tensor) -> Tensor:
    """As `embed`, by public means alone."""
    found: list[Tensor] = []

    def stop(_module: Any, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0])
        raise _EmbeddedError

    with _hooked(visual.transformer.register_forward_pre_hook(stop)):
        try:
            visual(images)
        except _EmbeddedError:
            return found[0]
    raise AssertionError("the blocks are not called with the embedded image")


def pool_by_hook(visual: VisionTransformer, x_BTW: Tensor, images: Tensor) -> Tensor:
    """As `pool`, by public means alone."""
    with _hooked(visual.transformer.register_forward_hook(lambda *_: x_BTW)):
        out = visual(images)
    features: Tensor = out[0] if isinstance(out, tuple) else out
    return features


@contextmanager
def _hooked(hook: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
