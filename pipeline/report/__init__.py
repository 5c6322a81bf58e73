"""One HTML file about a run or a sweep, for people: `gather` and `curves` read folders, `softlabels` and
`prompts` look at what lies behind them, `plots` draws, `page` puts it together."""

from pipeline.report.page import make_report

__all__ = ["make_report"]
