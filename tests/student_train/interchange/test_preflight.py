"""Exports to ONNX are refused before torch is imported if packages are missing."""

import pytest

from student_train.interchange import preflight
from student_train.interchange.preflight import require_onnx
from teacher_cache.errors import UsageError


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ONNX_PACKAGES", ("pytest", "no_such_package"))
    with pytest.raises(
        UsageError, match=r"^an export to ONNX needs no_such_package: pip install 'rpp-clip\["
    ):
        require_onnx()
    monkeypatch.setattr(preflight, "ONNX_PACKAGES", ("pytest",))
    require_onnx()
