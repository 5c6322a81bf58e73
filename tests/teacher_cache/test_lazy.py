"""A registry imports an entry when it is looked up, and not before."""

import subprocess
import sys

import pytest

from teacher_cache.lazy import Registry

LOOKUP = """
import sys
from teacher_cache.lazy import Registry
kinds = Registry({"tree": "json.tool:main", "missing": "no.such.module:name"})
assert list(kinds) == ["tree", "missing"] and len(kinds) == 2 and "missing" in kinds
assert "json.tool" not in sys.modules
assert callable(kinds["tree"]) and "json.tool" in sys.modules
"""


def test_entries_are_imported_at_their_lookup() -> None:
    subprocess.run([sys.executable, "-c", LOOKUP], check=True)


def test_unknown_names_and_defects_of_entries_are_different_errors() -> None:
    kinds: Registry[object] = Registry({"missing": "no_such_module:name"})
    with pytest.raises(KeyError):
        kinds["none"]
    with pytest.raises(ModuleNotFoundError):
        kinds["missing"]
