"""A cache that one environment wrote is read by another, with other releases of Python, zarr and numpy.

RPP_OTHER_PYTHON names the Python of the other environment; `.ci/run` sets it.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from teacher_cache.encodings import ENCODINGS
from tests.exchange import read_cache, write_caches, write_inputs

OTHER = os.environ.get("RPP_OTHER_PYTHON", "")
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not OTHER, reason="RPP_OTHER_PYTHON names no other environment")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The caches that both environments wrote, each with what the other one read."""
    inputs, ours, theirs = (tmp_path_factory.mktemp(name) for name in ("inputs", "ours", "theirs"))
    write_inputs(inputs)
    write_caches(inputs, ours)
    subprocess.run([OTHER, "-m", "tests.exchange", inputs, ours, theirs], cwd=ROOT, check=True)
    return {"this": ours, "the other": theirs}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("writer", ["this", "the other"])
def test_both_environments_read_the_same(folders: dict[str, Path], writer: str, encoding: str) -> None:
    """Stored values are bit-equal; computed soft labels are equal up to rounding."""
    path = folders[writer] / encoding
    here = read_cache(path)
    with np.load(f"{path}.npz") as there:
        assert here.keys() == set(there)
        for name, values in here.items():
            if name.startswith("soft labels"):
                np.testing.assert_allclose(values, there[name], rtol=1e-5, atol=1e-7, err_msg=name)
            else:
                np.testing.assert_array_equal(values, there[name], err_msg=name)
