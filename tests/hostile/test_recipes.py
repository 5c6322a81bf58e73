"""Recipes with broken TOML, settings of other types, and absurd sizes and places."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import load_recipe
from pipeline.suite import load_suite
from teacher_cache.errors import UsageError
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import is_one_line, tried
from tests.hostile.mutations import damaged

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
SUITES = sorted((Path(__file__).parents[2] / "pipeline" / "suites").glob("*.toml"))
VALUES = [
    *(
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "10000000000000000000000",
        "true",
        '""',
        '"a\\u0000b"',
        '"\\u001b[2J\\n"',
    ),
    *("[]", "{}", "[[1]]", "1979-05-27", '"../../outside"', '"all"', '"$HOME"', '"${NOWHERE}"', "[" * 5000),
]


@st.composite
def hostile_tomls(draw: st.DrawFn, files: list[Path]) -> bytes:
    """One of the files with replaced values, or with changed bytes."""
    lines = draw(st.sampled_from(files)).read_text(encoding="utf-8").splitlines()
    for _ in range(draw(st.integers(0, 3))):
        given = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
        number = draw(st.sampled_from(given))
        key = lines[number].partition("=")[0]
        lines[number] = f"{key}= {draw(st.sampled_from(VALUES))}"
    content = "\n".join(lines).encode()
    return draw(damaged(content)) if draw(st.booleans()) else content


@pytest.fixture(scope="module", autouse=True)
def places() -> Iterator[None]:
    """Set the environment variables of the recipes; without them recipes are refused."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("EMOJI", "IMAGENET21K", "IMAGENET21K_VAL"):
            patched.setenv(name, "/data")
        yield


@given(content=hostile_tomls(RECIPES))
@fuzzed(100)
def test_fuzz_recipes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_bytes(content)
    tried(lambda: load_recipe(path))


@given(content=hostile_tomls(SUITES))
@fuzzed(60)
def test_fuzz_suites(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "suite.toml"
    path.write_bytes(content)
    tried(lambda: load_suite(str(path), None))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" * 100_000, "is not TOML"),
        ("9" * 5000, "is not TOML"),
        ('"a\\u0000b', "is not TOML"),
        ("1e400", "--lr inf"),
        ('"\\u001b[2J\\n"', "--lr"),
        ("0.1\nstudent_features = 3", "--student-features 3: Input should be a valid string"),
    ],
)
def test_an_invalid_recipe_is_refused_in_one_line(value: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[train]\ncache = "zarr"\nout = "run"\nlr = {value}\n')
    with pytest.raises(UsageError, match=reason) as refused:
        load_recipe(path)
    assert is_one_line(str(refused.value))
