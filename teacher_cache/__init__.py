"""Stage one: a frozen CLIP teacher goes once over an image set; what it said is kept in Zarr.

Public is what `__all__` names; all else may change. What writes a cache or walks over all of it is imported
when it is first used, because it needs Dask, which takes seconds to import and which no reader needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from teacher_cache.errors import CacheDamagedError, RppError, UsageError
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from teacher_cache.build import BuildResult, BuildSettings, build_cache
    from teacher_cache.export import export_soft_labels
    from teacher_cache.extend import ExtendResult, ExtendSettings, extend_cache
    from teacher_cache.relabel import RelabelResult, RelabelSettings, relabel_cache
    from teacher_cache.stats import teacher_statistics
else:
    _IN = {
        "build": ("BuildResult", "BuildSettings", "build_cache"),
        "export": ("export_soft_labels",),
        "extend": ("ExtendResult", "ExtendSettings", "extend_cache"),
        "relabel": ("RelabelResult", "RelabelSettings", "relabel_cache"),
        "stats": ("teacher_statistics",),
    }

    def __getattr__(name: str) -> Any:
        for file, names in _IN.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{file}"), name)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = [
    "BuildResult",
    "BuildSettings",
    "CacheDamagedError",
    "ExtendResult",
    "ExtendSettings",
    "RelabelResult",
    "RelabelSettings",
    "RppError",
    "TeacherCache",
    "UsageError",
    "Vocabulary",
    "build_cache",
    "export_soft_labels",
    "extend_cache",
    "load_vocabulary",
    "open_cache",
    "relabel_cache",
    "teacher_statistics",
]
