"""Versions of this distribution and of the packages that it runs on.

No package is imported to find its version: importing torch takes seconds.
"""

import ctypes
import platform
import runpy
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from teacher_cache.errors import UsageError

NAME = "rpp-clip"  # `rpp` on PyPI is another project


def rpp_version() -> str:
    """Return the version of the installed distribution.

    Raises:
        UsageError: it is not installed, as in a checkout whose environment still has its old name.
    """
    try:
        return version(NAME)
    except PackageNotFoundError as error:
        raise UsageError(
            f"the distribution {NAME} is not installed; in a checkout run `pip uninstall rpp` (its old name) "
            "and `pip install --editable .`"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of rpp, Python and the packages that results depend on, and the state of CUDA."""
    torch_version, torch_cuda = _torch_build()
    return {
        "rpp": rpp_version(),
        "Python": platform.python_version(),
        "torch": torch_version,
        "open_clip": _installed("open_clip_torch"),
        "zarr": _installed("zarr"),
        "CUDA": _cuda(torch_cuda),
    }


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _torch_build() -> tuple[str, str | None]:
    """Return the version of torch and the CUDA version that it was built for, from `torch/version.py`."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "not installed", None
    file = Path(spec.origin).with_name("version.py")
    if not file.is_file():
        return "not installed completely", None
    found = runpy.run_path(str(file))
    return str(found["__version__"]), found.get("cuda")


def _cuda(torch_cuda: str | None) -> str:
    """Return the state of CUDA as reported by the driver, which respects CUDA_VISIBLE_DEVICES."""
    if torch_cuda is None:
        return "not available (torch is built without CUDA)"
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except OSError:
        found = False
    if not found or count.value == 0:
        return f"not available (torch is built for CUDA {torch_cuda}; no device found)"
    return f"{torch_cuda}, {count.value} device{'s' * (count.value > 1)}"
