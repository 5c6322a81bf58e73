"""What imports and exports refuse before they import torch and open_clip, which takes seconds."""

from collections.abc import Sequence
from importlib.util import find_spec

from teacher_cache.errors import UsageError

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Refuse an export to ONNX without the packages that it needs.

    Raises:
        UsageError: what is missing, and how it is installed.
    """
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise onnx_packages_missing(missing)


def onnx_packages_missing(names: Sequence[str]) -> UsageError:
    """The error for packages of the extra `onnx` that cannot be imported."""
    return UsageError(f"an export to ONNX needs {', '.join(names)}: pip install 'rpp-clip[onnx]'")
