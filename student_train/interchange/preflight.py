"""Checks of imports and exports that run before torch and open_clip are imported, which takes seconds."""

import os
from importlib.util import find_spec
from pathlib import Path

from teacher_cache.errors import UsageError
from teacher_cache.preflight import require_file

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

DASSL_FILE = "model*.pth.tar*"  # model-best.pth.tar and model.pth.tar-EPOCH, in a folder named like the model


def require_checkpoint(path: Path) -> None:
    """Refuse a published checkpoint that is not a file.

    Raises:
        UsageError: it does not exist, or is a folder; names the checkpoints in it.
    """
    if os.path.isdir(path):
        found = [file for depth in ("", "*/", "*/*/") for file in sorted(path.glob(depth + DASSL_FILE))]
        example = f", {found[0]} for example" if found else ""
        raise UsageError(f"{path} is a folder; give a checkpoint{example}")
    require_file(path)


def require_onnx() -> None:
    """Check that the packages for an export to ONNX are installed.

    Raises:
        UsageError: some are missing; says how to install them.
    """
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        packages = ", ".join(missing)
        raise UsageError(f"an export to ONNX needs {packages}: pip install 'rpp-clip[onnx]'")
