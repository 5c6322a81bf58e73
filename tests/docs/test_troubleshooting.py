"""Each sentence that the troubleshooting page quotes is still in the source, word for word."""

import ast
import re
from pathlib import Path

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^\*\*`(.+)`\*\*$", PAGE.read_text(), re.MULTILINE)
VALUE = "…"


def sentences(path: Path) -> set[str]:
    """All texts of a source file, with `…` for what is put in or added."""
    return {
        re.sub(f"{VALUE}+", VALUE, text(node))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp)
    }


def text(node: ast.AST) -> str:
    """What an expression is as a sentence."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left) + text(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else VALUE


def test_every_quoted_message_is_in_the_source() -> None:
    packages = ("teacher_cache", "student_train", "pipeline")
    said = {s for name in packages for path in (ROOT / name).rglob("*.py") for s in sentences(path)}
    assert len(QUOTED) > 50
    assert {quoted for quoted in QUOTED if quoted not in said} == set()


def test_every_entry_quotes_one_message_and_says_what_to_do() -> None:
    """Bold lines begin entries; below each stands a sentence."""
    text = PAGE.read_text()
    assert len(re.findall(r"^\*\*", text, re.MULTILINE)) == len(QUOTED)
    assert len(set(QUOTED)) == len(QUOTED)
    for entry in re.split(r"^\*\*.*\*\*$", text, flags=re.MULTILINE)[1:]:
        assert re.match(r"\n[A-Z`].+", entry), entry
