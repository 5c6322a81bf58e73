"""Checks of imports and exports that run before torch and open_clip are imported, which takes seconds."""

from importlib.util import find_spec

from teacher_cache.errors import UsageError

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Check that the packages for an export to ONNX are installed.

    Raises:
        UsageError: some are missing; says how to install them.
    """
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        packages = ", ".join(missing)
        raise UsageError(f"an export to ONNX needs {packages}: pip install 'rpp-clip[onnx]'")
