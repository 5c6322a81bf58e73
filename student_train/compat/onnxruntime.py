"""The errors that onnxruntime raises for a file that it cannot run.

Private: the classes of `onnxruntime.capi.onnxruntime_pybind11_state`, seen in onnxruntime 1.20 to 1.32. They
have no public name and no common base but `Exception`, which is the fallback if they are missing.
"""

from typing import Any

NAMES = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")


def failures(runtime: Any) -> tuple[type[Exception], ...]:
    """Return the error classes of the module `onnxruntime`."""
    state = getattr(getattr(runtime, "capi", None), "onnxruntime_pybind11_state", None)
    return tuple(getattr(state, name) for name in NAMES if hasattr(state, name)) or (Exception,)
