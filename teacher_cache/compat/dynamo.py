"""What this project uses of torch.compile that torch does not document.

- `torch._dynamo.config.recompile_limit`, `cache_size_limit` in torch 2.6: after 8 compilations of a function
  torch runs it uncompiled, and the towers have more kinds of blocks and shapes. Without it, torch's limit.
- `torch._dynamo.callback`: when torch starts and ends to compile. Without it, `CompileClock` stays at zero.

Seen in torch 2.6 to 2.14.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from teacher_cache.errors import UsageError

BACKEND = "inductor"  # tests set others, which compile faster
LIMIT = 64  # compilations of a function
LIMIT_NAMES = ("recompile_limit", "cache_size_limit")
# What torch raises: TorchDynamoException and InvalidCxxCompiler are RuntimeErrors; TritonMissing is raised as
# one, or as an ImportError.
COMPILE_ERRORS = (RuntimeError, ImportError, OSError)

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def require_compiler(device: torch.device) -> None:
    """Compile a small function, and raise the limit on compilations.

    Raises:
        UsageError: torch.compile does not work on this machine.
    """
    import torch._dynamo.config as config

    for name in LIMIT_NAMES:
        if hasattr(config, name):
            setattr(config, name, max(LIMIT, getattr(config, name)))
            break
    try:
        torch.compile(_probe, fullgraph=True, backend=BACKEND)(torch.ones(8, device=device))
    except COMPILE_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # the reason follows a line "backend='inductor' raised:"
        why = next((line for line in lines if not line.endswith("raised:")), repr(error))
        triton = "Triton (pip install triton) and " if device.type == "cuda" else ""
        raise UsageError(
            f"--compile: torch.compile does not work on this machine ({why}); it needs "
            f"{triton}a C++ compiler (apt install g++, or name one with CXX); install it, or leave out "
            "--compile"
        ) from error


def is_compile_error(error: RuntimeError) -> bool:
    """Return whether an error is torch.compile's own: it cannot compile a function."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x) + 1


@cache
def compiled(function: Function) -> Function:
    """Return the function, compiled for each kind of its arguments; always the same object.

    A module among the arguments is an input: modules of equal structure share a compilation.
    """
    return cast(Function, torch.compile(function, fullgraph=True, backend=BACKEND))


class CompileClock:
    """Measures the time in which torch compiles, from the backward pass's thread too.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None
        try:
            from torch._dynamo.callback import on_compile_end, on_compile_start
        except ImportError:
            return
        on_compile_start(self._start)
        on_compile_end(self._end)

    def _start(self, *_: Any) -> None:  # torch 2.6 gives no argument
        self._since = time.perf_counter()

    def _end(self, *_: Any) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None
