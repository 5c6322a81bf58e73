"""The source archive and the wheel are complete, and the wheel works without the sources."""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("teacher_cache", "student_train", "pipeline")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BESIDE = (".ci", "benchmarks", "docs", "recipes", "tests")
LEGAL = {"LICENSE", "THIRD_PARTY.md"}


def packaged_files() -> set[str]:
    """Return all files of the packages in the checkout."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file())
    return {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it, not from the checkout."""
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, checkout)
    for folder in (*PACKAGES, *BESIDE):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def test_both_archives_hold_all_files_of_the_packages(archives: tuple[Path, Path]) -> None:
    source, wheel = archives
    packaged = packaged_files()
    suffixes = {PurePosixPath(name).suffix for name in packaged}
    assert suffixes > {".py", ".parquet", ".gz", ".toml", ".css", ".jinja"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= packaged
    with tarfile.open(source) as tar:
        in_source = {name.partition("/")[2] for name in tar.getnames()}
    assert in_source >= packaged | LEGAL | {"README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}
    assert {"tests/conftest.py", "docs/format.md", "Makefile", ".ci/run", ".dockerignore"} <= in_source
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    info = f"rpp_clip-{PROJECT['version']}.dist-info"
    assert {name for name in in_wheel if not name.startswith(f"{info}/")} == packaged
    assert {f"{info}/licenses/{name}" for name in LEGAL} <= in_wheel


def test_the_wheel_works_in_an_environment_of_its_own(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Dependencies are those of this environment; RPP itself comes only from the wheel."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(archives[1])]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    # Read behind the environment's own packages. As plain folders: their .pth files, among them that of an
    # editable RPP, are not followed.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command: str | Path) -> str:
        return subprocess.check_output(command, cwd=tmp_path, env=clean, text=True, stderr=subprocess.STDOUT)

    for name in PROJECT["scripts"]:
        assert (tmp_path / "venv" / "bin" / name).is_file()
    assert "Usage: rpp" in run(tmp_path / "venv" / "bin" / "rpp", "--help")  # all three import the same
    code = """
import pipeline.demo, teacher_cache
from importlib.metadata import version
from pathlib import Path
from pipeline import load_suite
from teacher_cache import load_vocabulary
demo = Path(pipeline.demo.__file__).parent
names = load_vocabulary(demo / "pictures" / "classes.txt")
suite = load_suite("domain")
print("found", version("rpp-clip"), len(names), len(suite.data), teacher_cache.__file__, pipeline.__file__)
"""
    found = next(line for line in run(python, "-c", code).splitlines() if line.startswith("found"))
    _, version, classes, data, *files = found.split()
    assert (version, classes) == (PROJECT["version"], "600")
    assert int(data) > 0
    for file in files:
        assert Path(file).is_relative_to(packages)


def test_the_version_and_the_licence_are_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
    assert f"\n## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]
    third_party = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8").lower()
    for line in PROJECT["dependencies"]:
        name = line.split(">")[0].split("=")[0]
        assert name.lower() in third_party, f"{name} is not in THIRD_PARTY.md"


def pip_installs() -> dict[str, list[str]]:
    """Return the packages of every `pip install` in messages, pages and the Dockerfile, by file."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Dockerfile"]
    files += [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found: dict[str, list[str]] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        for match in re.finditer(r"pip install ((?:'[^']+'|[^\s`'\"#;,)&\\]+|[ ])+)", text):
            words = [word for word in shlex.split(match[1]) if not word.startswith("-")]
            if words:
                found[f"{file.relative_to(ROOT)}: {match[0]}"] = words
        for match in re.finditer(r"`'(rpp[^']*\])'`", text):  # "..., `'rpp-clip[gcs]'` or ..."
            found[f"{file.relative_to(ROOT)}: {match[0]}"] = [match[1]]
    return found


def test_every_pip_install_names_our_package_or_a_known_one() -> None:
    """The package `rpp` on PyPI is another project."""
    extras = PROJECT["optional-dependencies"]
    every = [line for lines in extras.values() for line in lines]
    others = {re.split(r"[<>=!\[]", line)[0] for line in [*PROJECT["dependencies"], *every]}
    others |= {"dask-jobqueue", "dask-cuda", "gcsfs", "triton"}
    files = {".", "requirements.txt", f"rpp_clip-{PROJECT['version']}-py3-none-any.whl"}
    installs = pip_installs()
    assert len(installs) > 10
    for where, words in installs.items():
        for word in words:
            name, _, more = word.partition("[")
            name = re.split(r"[<>=! ]", name)[0]
            if name in files or (name == "{" and not more):
                continue
            assert name == PROJECT["name"] or name in others, where
            if name in (PROJECT["name"], ".") and more:
                asked = set(more.partition("]")[0].split(","))
                assert asked <= extras.keys() | {"{name}", "{extra}", "…"}, where
    said = {word for words in installs.values() for word in words}
    assert {"rpp-clip[s3]", "rpp-clip[onnx]", "rpp-clip[{extra}]"} <= said
