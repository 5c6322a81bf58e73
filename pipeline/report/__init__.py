"""One HTML file about a run or a sweep, for people: `gather` and `curves` read folders, `softlabels` and
`prompts` look at what lies behind them, `plots` draws, `page` puts it together."""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from pipeline.report.page import make_report
else:
    __getattr__, __dir__ = lazy_names(__name__, {"page": ("make_report",)})

__all__ = ["make_report"]
