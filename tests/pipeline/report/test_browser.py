"""The file in a real browser: Debian's chromium, headless; `make test` installs it where it can."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.report import make_report
from pipeline.report.curves import CURVES
from pipeline.report.plots import luminance
from pipeline.seeds import figure_text, spread
from student_train.runs.record import RESULTS, read_metrics
from tests.pipeline.report.conftest import SCRIPT, WHY

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("no chromium on this machine: install it, or leave these out with -m 'not browser'")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(sweep_path: Path, run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of the sweep and of the run."""
    out = tmp_path_factory.mktemp("html")
    folders = {"sweep": sweep_path, "run": run_path}
    return {name: make_report(folder, out / f"{name}.html") for name, folder in folders.items()}


class Opened:
    """A page with its errors and requests while it is open."""

    def __init__(self, browser: Browser, file: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.troubles.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri(), wait_until="load")

    def table(self, scope: str) -> list[list[str]]:
        """Texts of the first table in a part of the page, with its headings."""
        found: list[list[str]] = self.page.evaluate(
            "scope => [...document.querySelector(scope + ' table').rows].map(row => "
            "[...row.cells].map(cell => cell.textContent.trim()))",
            scope,
        )
        return found


@pytest.fixture
def opened(browser: Browser, files: dict[str, Path]) -> Iterator[Any]:
    """Return a function that opens a report by name."""
    pages: list[Opened] = []

    def open_one(name: str, **context: Any) -> Opened:
        pages.append(Opened(browser, files[name], **{"viewport": DESK, **context}))
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()


@pytest.mark.parametrize("name", ["sweep", "run"])
def test_it_loads_without_errors_requests_or_dialogs(opened: Any, name: str) -> None:
    one = opened(name)
    one.page.wait_for_timeout(200)
    assert one.troubles == []
    assert one.requests
    assert [url[:60] for url in one.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in one.requests if url.startswith("file:")]) == 1, "the file alone"


def test_a_class_name_that_looks_like_a_script_is_text(opened: Any) -> None:
    one = opened("sweep")
    assert one.page.evaluate("document.scripts.length") == 0
    shown = one.page.evaluate(
        "name => [...document.querySelectorAll('article .label')].map(e => e.textContent)", SCRIPT
    )
    assert f"hard label: {SCRIPT}" in shown
    assert one.page.get_by_text(WHY).count() == 1
    assert one.troubles == []


def test_the_tables_hold_the_figures_of_the_logs(opened: Any, sweep_path: Path) -> None:
    one = opened("sweep")
    logs = [list(read_metrics(sweep_path / "runs" / f"t4-w0.5-{seed}")) for seed in (0, 1)]
    drawn = one.page.evaluate("document.querySelectorAll('#curves figure').length")
    assert drawn == len(CURVES)
    for place, name in enumerate(CURVES, start=1):
        heading, *rows = one.table(f"#curves figure:nth-of-type({place})")
        column = heading.index("temperature 4, soft weight 0.5")
        factor = 100 if name == "accuracy" else 1
        means = [factor * (a[name] + b[name]) / 2 for a, b in zip(*logs, strict=True)]
        for step, (row, mean) in enumerate(zip(rows, means, strict=False), start=1):
            assert row[0] == str(step)
            assert float(row[column]) == pytest.approx(mean, abs=5.1e-5, rel=5.1e-4)
        assert rows[6][0] == "lowest"
        assert float(rows[6][column]) == pytest.approx(min(means), abs=5.1e-5, rel=5.1e-4)


def test_the_headline_holds_the_figures_of_the_results(opened: Any, sweep_path: Path) -> None:
    heading, *rows = opened("sweep").table("#results")
    results = [
        json.loads((sweep_path / "runs" / f"t1-w0.5-{seed}" / RESULTS).read_text())["evals"][1]
        for seed in (0, 1)
    ]
    row = next(row for row in rows if row[:2] == ["1", "0.5"])
    for name, title in (("top1", "top-1 %"), ("harmonic", "harmonic %"), ("ece", "ECE")):
        assert row[heading.index(title)].removesuffix(" ★") == figure_text(
            name, spread(found[name] for found in results)
        )
    assert [f"seed 1 failed: {WHY}"] in rows


def test_a_run_shows_its_own_figures(opened: Any, run_path: Path) -> None:
    one = opened("run")
    heading, *rows = one.table("#curves figure")
    assert heading == ["step", "this run"]
    for row, line in zip(rows, read_metrics(run_path), strict=False):
        assert row == [str(line["step"]), f"{line['loss']:.4f}"]
    assert one.page.locator("#norms svg text", has_text="dead").count() == 4


@pytest.mark.parametrize("name", ["sweep", "run"])
@pytest.mark.parametrize("folded", [True, False])
def test_a_phone_does_not_scroll_sideways(opened: Any, name: str, folded: bool) -> None:
    page = opened(name, viewport=PHONE).page
    if not folded:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    wide = page.evaluate(
        "[...document.querySelectorAll('p, h1, h2, h3, dl, article, img, figcaption')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.textContent)"
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(opened: Any, scheme: str) -> None:
    page = opened("sweep").page
    page.emulate_media(color_scheme=scheme)
    found = page.evaluate(
        """() => {
          const back = element => {
            for (let at = element; at; at = at.parentElement) {
              const colour = getComputedStyle(at).backgroundColor;
              if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour;
            }
            return 'rgb(255, 255, 255)';
          };
          const texts = [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() &&
            [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) &&
            !(one.tagName === 'text' && one.hasAttribute('fill')));
          return texts.map(one => {
            const svg = one instanceof SVGElement, style = getComputedStyle(one);
            return [one.textContent, svg ? style.fill : style.color, back(one)];
          });
        }"""
    )
    assert len(found) > 100
    seen = {(text, back) for _, text, back in found}
    assert len(seen) >= 3, "texts, quiet texts and links"
    for text, back in seen:
        high, low = sorted((luminance(rgb(text)), luminance(rgb(back))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)
    paper = luminance(rgb(page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert paper < 0.05 if scheme == "dark" else paper > 0.9


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    return red, green, blue


def test_it_prints_on_light_paper(opened: Any) -> None:
    page = opened("sweep", color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
