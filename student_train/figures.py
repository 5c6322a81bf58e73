"""What evaluators' figures are called and how they are shown."""

ZERO_SHOT = "zero-shot"  # the frozen model, where figures name a student

# In the order of a table's columns, with what stands above them.
FIGURES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "per_class": "per class %",
    "base": "base %",
    "new": "new %",
    "harmonic": "harmonic %",
    "agreement": "teacher agrees %",
    "ece": "ECE",
    "kl": "KL to teacher",
}


def is_share(figure: str) -> bool:
    """Whether a figure is a share of 1, which is shown in per cent."""
    return FIGURES[figure].endswith("%")


def shown(figure: str, value: float) -> str:
    """A figure's value as a table has it."""
    return f"{100 * value:.2f}" if is_share(figure) else f"{value:.4f}"
