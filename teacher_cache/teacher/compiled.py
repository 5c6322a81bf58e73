"""Compile an image encoder block by block."""

from collections.abc import Iterator

from torch import nn

from teacher_cache.compat import dynamo


def compile_blocks(encoder: nn.Module) -> None:
    """Compile the repeated blocks of an encoder, in place; if it has none, the encoder.

    Blocks of equal structure share a compilation, so that a tower takes as long as a block does. Embedding
    and pooling run uncompiled.
    """
    for block in list(_repeated(encoder)) or [encoder]:
        block.compile(backend=dynamo.BACKEND)


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules in lists of modules of one class, the outermost of nested lists."""
    for child in module.children():
        items = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        if len(items) > 1 and len({type(item) for item in items}) == 1:
            yield from items
        else:
            yield from _repeated(child)
