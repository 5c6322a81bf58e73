"""Tables in a terminal: a wide one is split into several, and no figure is cut."""

import io

import pytest
from rich.console import Console

from pipeline.tables import Cells

FIGURES = [f"1{n}.00 ± 0.{n}0" for n in range(8)]
CELLS = Cells(
    ["images", "soft_weight", *(f"figure {n}" for n in range(8))],
    [["emoji/noto-v1.tar", "0.5", *FIGURES], ["a very long name of images " * 9, "1.0", *FIGURES]],
    [["mean", "", *FIGURES]],
    names=2,
)


def printed(width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(CELLS)
    return file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "tables"), [(40, 8), (80, 4), (120, 2), (1000, 1)])
def test_no_figure_is_cut_and_no_line_is_too_long(width: int, tables: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("┏") for line in lines) == tables
    cells = [cell.strip() for line in lines for cell in line.replace("┃", "│").split("│")]
    for figure in FIGURES:
        assert cells.count(figure) == 3
    for number in range(8):
        assert cells.count(f"figure {number}") == 1
    assert cells.count("mean") == tables


def test_where_all_fits_nothing_is_wrapped() -> None:
    assert len(printed(1000)) == 8  # a heading, two rows, a mean, and the lines around them


def test_a_name_that_is_wrapped_loses_no_letter() -> None:
    firsts = "".join(line.split("│")[1].strip() for line in printed(40) if line.startswith("│"))
    assert firsts.replace(" ", "").count("averylongnameofimages" * 9) == 8


def test_long_headings_and_values_are_wrapped_and_names_stay() -> None:
    """As in `rpp compare`: folders of runs as headings, and settings that are sentences."""
    runs = [
        f"sweeps/structure/runs/prompt_structure={name},carry=replace,seed=0" for name in ("qkv", "shared")
    ]
    sentence = "nothing reads the query prompts of blocks 1 to 4 " * 4
    compared = Cells(
        ["57 are the same", *runs], [["never_read", sentence, ""]], [["loss", "2.9606", "2.9944"]], names=1
    )
    file = io.StringIO()
    Console(file=file, width=80).print(compared)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    columns = [line.replace("┃", "│").split("│")[1:-1] for line in lines if line[0] in "┃│"]
    whole = ["".join(cell.strip() for cell in column) for column in zip(*columns[:-1], strict=False)]
    assert "never_read" in whole[0]
    assert runs[0] in whole[1]
    assert sentence.replace(" ", "") in whole[1].replace(" ", "")
