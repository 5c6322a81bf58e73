"""Stage one: a frozen CLIP teacher goes once over an image set; its soft labels are kept in Zarr.

Public is what `__all__` names; all else may change. Each name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from teacher_cache.build import BuildResult, build_cache
    from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
    from teacher_cache.command_settings import BuildSettings, ExtendSettings, RelabelSettings
    from teacher_cache.errors import CacheDamagedError, RppError, UsageError
    from teacher_cache.export import export_soft_labels
    from teacher_cache.extend import ExtendResult, extend_cache
    from teacher_cache.relabel import RelabelResult, relabel_cache
    from teacher_cache.softlabels import TeacherCache, open_cache
    from teacher_cache.stats import teacher_statistics
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "build": ("BuildResult", "build_cache"),
            "command_settings": ("BuildSettings", "ExtendSettings", "RelabelSettings"),
            "errors": ("CacheDamagedError", "RppError", "UsageError"),
            "export": ("export_soft_labels",),
            "extend": ("ExtendResult", "extend_cache"),
            "relabel": ("RelabelResult", "relabel_cache"),
            "softlabels": ("TeacherCache", "open_cache"),
            "stats": ("teacher_statistics",),
            "classes.vocabulary": ("Vocabulary", "load_vocabulary"),
        },
    )

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
