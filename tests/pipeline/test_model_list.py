"""`rpp models`: tables and JSON about open_clip's models."""

import json
import sys

import pytest

from pipeline.cli import main
from pipeline.model_list import describe_model


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["rpp", "models", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_all_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(monkeypatch, capsys, "--json"))
    assert {"model", "tags", "text", "vision", "reason"} <= rows[0].keys()
    count = sum(len(row["tags"]) for row in rows)
    table = printed(monkeypatch, capsys)
    assert all(row["model"] in table for row in rows)
    both = sum(len(row["tags"]) for row in rows if row["text"] and row["vision"])
    assert f"{count} tags; prompts in: {both} both, " in table


def test_one_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(monkeypatch, capsys, "RN50")
    assert "prompts: text (the vision tower ModifiedResNet cannot carry prompts: it is convolutional" in text
    for expected in ("exact prefix: yes", "yfcc15m", "QuickGELU; mean 0.48", "79,072"):
        assert expected in text
    record = json.loads(printed(monkeypatch, capsys, "RN50", "--json"))
    assert (record["model"], record["text"], record["vision"]) == ("RN50", True, False)
    assert record["costs"]["1,000 names"]["rows"] == 4224


def test_an_image_size_of_two_numbers_is_printed() -> None:
    record, lines = describe_model("ViT-B-16")
    assert record["image_size"] == 224
    assert lines[0] == "ViT-B-16: image 224, embedding 512"
