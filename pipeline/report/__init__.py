"""Write one HTML file about a run or a sweep.

`gather` and `curves` read folders, `softlabels` and `prompts` read the cache and the student, `plots` draws,
and `page` joins the sections.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from pipeline.report.page import make_report
else:
    __getattr__, __dir__ = lazy_names(__name__, {"page": ("make_report",)})

__all__ = ["make_report"]
