"""The packages' import graph, their public names, and modules that must not be imported."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("teacher_cache", "student_train", "pipeline")  # each imports only what stands to its left
OF_THE_DEMO = (("pipeline.demo", None), ("pipeline.demo.clips", "unpack_clip"))  # what pages use of it
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def imported_names(code: str) -> set[tuple[str, str | None]]:
    """Return (module, name) of every import, also in functions and for types; None is the module."""
    found: set[tuple[str, str | None]] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package"
            found |= {(node.module or "", alias.name) for alias in node.names}
    return found


IMPORTS = {module: imported_names(file.read_text(encoding="utf-8")) for module, file in FILES.items()}


def file_of(module: str, name: str | None) -> str:
    """Return the file that an import reads; `from package import file` reads the file."""
    return f"{module}.{name}" if f"{module}.{name}" in FILES else module


GRAPH = {
    module: {file_of(*name) for name in names} & FILES.keys() - {module} for module, names in IMPORTS.items()
}


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_packages_import_only_downwards() -> None:
    floors = {package: floor for floor, package in enumerate(PACKAGES)}
    up = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if floors[other.split(".")[0]] > floors[module.split(".")[0]]
    ]
    assert not up
    # the graph is not empty
    assert "teacher_cache.errors" in GRAPH["student_train.training.loop"]
    assert "student_train.training.loop" in GRAPH["pipeline.student_run"]


# Folders and files of a package by floor, top down; each imports its own floor and those below.
FLOORS = {
    "student_train": (
        ("cli", "clip_benchmark"),
        ("interchange",),
        ("training", "evaluation"),
        ("model",),
        ("data", "runs"),
        ("compat", "figures", "markdown"),
    ),
    "teacher_cache": (
        ("cli",),
        ("extend", "relabel", "render", "build", "estimate", "stats", "export", "info", "pace"),
        ("compute",),
        ("teacher", "softlabels"),
        ("preflight", "pixels"),
        ("views",),
        ("store",),
        ("command_settings",),
        ("images", "encodings"),
        ("classes",),
        ("options", "model_names", "conventions", "distribution", "progress"),
        (
            "files",
            "compat",
            "settings",
            "stopping",
            "cores",
            "device_copies",
            "memory",
            "indices",
            "lazy",
            "errors",
        ),
    ),
}


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_downwards(package: str) -> None:
    floors = {room: -number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    rooms = {module: module.split(".")[1] for module in GRAPH if module.startswith(f"{package}.")}
    assert set(rooms.values()) == set(floors), "every file and folder of the package has its floor"
    up = [
        f"{module} imports {other}"
        for module in rooms
        for other in GRAPH[module] & rooms.keys()
        if floors[rooms[other]] > floors[rooms[module]]
    ]
    assert not up


def test_packages_import_no_tests_and_no_benchmarks() -> None:
    scripts = {file.stem for folder in ("benchmarks", "tests") for file in (ROOT / folder).glob("*.py")}
    outside = {"tests", "benchmarks", *scripts - {"__init__"}}
    found = [f"{module} imports {other}" for module, names in IMPORTS.items() for other, _ in names]
    assert not [line for line in found if line.split(" imports ")[1].split(".")[0] in outside]


def test_nothing_private_is_imported() -> None:
    """A name with a leading underscore is used only in its file."""
    private = [
        f"{module} imports {other}.{name}"
        for module, names in IMPORTS.items()
        for other, name in names
        if other.split(".")[0] in PACKAGES and re.search(r"\._", f"{other}.{name}")
    ]
    assert not private


def private_names(code: str) -> tuple[set[str], set[str]]:
    """Return the names with a leading underscore that code defines, and those that it takes from others."""
    defined, asked = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute):
            own = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
            (defined if own and node.value.id == "self" else asked).add(node.attr)  # type: ignore[attr-defined]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            asked |= {value.value for value in node.args if isinstance(value, ast.Constant)}
        elif isinstance(node, ast.ImportFrom):
            asked |= {alias.name for alias in node.names}
            defined |= {alias.asname or alias.name for alias in node.names}
    public = {"_exit"}  # of os: documented
    return tuple({n for n in names if re.match(r"_[^_]", str(n))} - public for names in (defined, asked))  # type: ignore[return-value]


def test_private_names_of_other_libraries_are_only_in_compat() -> None:
    names = {module: private_names(file.read_text(encoding="utf-8")) for module, file in FILES.items()}
    ours = set[str]().union(*(defined for defined, _ in names.values()))
    foreign = {module: asked - ours for module, (_, asked) in names.items() if asked - ours}
    assert all(".compat." in module for module in foreign), foreign
    assert foreign["teacher_cache.compat.fsspec"] == {"_strip_protocol"}  # the search works
    modules = {
        f"{module} imports {other}"
        for module, names in IMPORTS.items()
        for other, _ in names
        if re.search(r"\._|^_[^_]|^(zarr|fsspec|distributed|torch)\.core\b", other)
        and ".compat." not in module
    }
    assert not modules


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_have_docstrings(package: str) -> None:
    root = import_module(package)
    assert root.__all__ == sorted(root.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in root.__all__:
        found = getattr(root, name)
        assert not isinstance(found, type(root)), f"{package}.{name} is a file"
        assert found.__doc__, f"{package}.{name}"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'build_cash'"):
        _ = root.build_cash


def test_pages_import_only_public_names() -> None:
    seen = set()
    for page in PAGES:
        if page.name == "contributing.md":
            continue  # its examples change the packages
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for module, name in imported_names(block):
                if module.split(".")[0] not in PACKAGES or (module, name) in OF_THE_DEMO:
                    continue  # its images are in its folder
                assert module in PACKAGES, f"{page.name} imports from {module}"
                assert name in import_module(module).__all__, f"{page.name} imports {module}.{name}"
                seen.add(f"{module}.{name}")
    assert {"teacher_cache.build_cache", "student_train.train"} <= seen


def modules_after(code: str) -> set[str]:
    """Return the modules that a new process has imported after running code."""
    code += "\nimport sys\nprint('imported', *sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    return set(output.splitlines()[-1].split()[1:])


def test_a_process_of_a_sweep_imports_neither_dask_nor_the_build() -> None:
    """Also not through the public functions of stage two."""
    loaded = modules_after(
        "import pipeline.sweep_process, student_train.training.loop, student_train.evaluation.evaluate\n"
        "from student_train import evaluate, predict, train\n"
        "assert callable(train) and callable(evaluate) and callable(predict)\n"
        "import teacher_cache, pipeline"
    )
    assert "student_train.training.inputs" in loaded
    assert not loaded & {"distributed", "dask.array", "dask.dataframe"}
    assert not loaded & {
        "teacher_cache.build",
        "teacher_cache.compute.cluster",
        "teacher_cache.compute.workers",
        "pipeline.sweep",
        "pipeline.run",
    }
