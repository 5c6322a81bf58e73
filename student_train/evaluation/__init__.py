"""Evaluation and prediction: data sets, models, evaluators."""
