"""`docs/python.md` runs as it stands, and prints what it says that it prints."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks in one namespace. Behind a `#` stands what the line prints, or the shape that it makes."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    said, output = 0, list[str]()
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        output += printed
        for line, comment in re.findall(r"^\s*(.*?)  # (.*)$", block, re.MULTILINE):
            if line.startswith("print("):
                assert comment in printed
            else:
                assert comment.startswith(str(names[line.split(" = ")[0]].shape)), line
            said += 1
    assert said == 5
    assert names["result"].loss == names["lines"][-1]["loss"]
    picture = [names["cache"].vocabulary.names[index] for index in names["likely"].indices]
    assert output[-1] == str(picture)
    assert "woman firefighter" in picture
