"""Both stages chained: recipes, sweeps, evaluation on suites, reports, the demo.

Public is what `__all__` names; all else may change. Each name is imported when it is first used: the
processes of a sweep live in this package and need neither Dask nor stage one's build.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.compare import compare_runs
    from pipeline.recipe import Recipe, load_recipe
    from pipeline.report import make_report
    from pipeline.run import run_recipe
    from pipeline.suite import Suite, load_suite, run_suites
    from pipeline.sweep import SweepSettings, run_sweep
    from pipeline.sweep_record import SweepRecord, read_sweep
else:
    _IN = {
        "compare": ("compare_runs",),
        "recipe": ("Recipe", "load_recipe"),
        "report": ("make_report",),
        "run": ("run_recipe",),
        "suite": ("Suite", "load_suite", "run_suites"),
        "sweep": ("SweepSettings", "run_sweep"),
        "sweep_record": ("SweepRecord", "read_sweep"),
    }

    def __getattr__(name: str) -> Any:
        for file, names in _IN.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{file}"), name)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = [
    "Recipe",
    "Suite",
    "SweepRecord",
    "SweepSettings",
    "compare_runs",
    "load_recipe",
    "load_suite",
    "make_report",
    "read_sweep",
    "run_recipe",
    "run_suites",
    "run_sweep",
]
