"""Run both stages: recipes, sweeps, evaluation on suites, reports, the demo.

The names in `__all__` are public; everything else may change. Each is imported when it is first used.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from pipeline.compare import compare_runs
    from pipeline.recipe import Recipe, load_recipe
    from pipeline.report import make_report
    from pipeline.run import run_recipe
    from pipeline.settings import SweepSettings
    from pipeline.suite import Suite, load_suite
    from pipeline.suite_run import run_suites
    from pipeline.sweep import run_sweep
    from pipeline.sweep_record import SweepRecord, read_sweep
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "compare": ("compare_runs",),
            "recipe": ("Recipe", "load_recipe"),
            "report": ("make_report",),
            "run": ("run_recipe",),
            "settings": ("SweepSettings",),
            "suite": ("Suite", "load_suite"),
            "suite_run": ("run_suites",),
            "sweep": ("run_sweep",),
            "sweep_record": ("SweepRecord", "read_sweep"),
        },
    )

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
