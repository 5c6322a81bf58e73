"""How well models tell images apart: data sets, models, evaluators, predictions."""
