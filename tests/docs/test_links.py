"""Links between the pages lead somewhere: files are there, and headings have the anchors."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INDEX = ROOT / "docs" / "README.md"


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", " ", code[0]), text)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings, and what the page sets itself."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (slug if not number else f"{slug}-{number}") in found:
            number += 1
        found.add(slug if not number else f"{slug}-{number}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        here = target.exists() and target.is_relative_to(ROOT)
        if not here or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


def test_the_index_has_every_page() -> None:
    linked = {(INDEX.parent / link).resolve() for link in LINK.findall(prose(INDEX))}
    assert linked >= {page for page in PAGES if page not in (ROOT / "README.md", INDEX)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_are_there(page: Path) -> None:
    """Tests, benchmarks, recipes and sources in code marks."""
    folders = "tests|benchmarks|recipes|pipeline|student_train|teacher_cache"
    named = re.findall(rf"(?<![\w/.])((?:{folders})/[\w/.-]+)", prose(page))
    missing = {name.rstrip(".") for name in named if not (ROOT / name.rstrip(".")).exists()}
    assert not missing


def test_tests_that_the_method_names_are_there() -> None:
    files = list((ROOT / "tests" / "student_train").rglob("test_*.py"))
    tests = "".join(path.read_text() for path in files)
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs" / "method.md").read_text()))
    named -= {path.stem for path in files}
    assert len(named) > 8
    assert {name for name in named if f"def {name}(" not in tests} == set()
