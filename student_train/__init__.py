"""Stage two: a frozen CLIP with learnable prompts, trained on hard and cached soft labels.

Public is what `__all__` names; all else may change. Each name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from student_train.evaluation.evaluate import evaluate
    from student_train.evaluation.predict import Prediction, predict
    from student_train.evaluation.settings import EvalOptions, EvalSettings, PredictSettings
    from student_train.interchange.classifier import export_classifier
    from student_train.interchange.huggingface import export_huggingface
    from student_train.interchange.onnx_tower import OnnxFile, export_onnx
    from student_train.interchange.published import import_prompts
    from student_train.interchange.settings import (
        ClassifierSettings,
        HuggingFaceSettings,
        ImportSettings,
        OnnxSettings,
    )
    from student_train.model.settings import PromptSettings
    from student_train.model.student import PromptedCLIP, load_student
    from student_train.runs.record import read_metrics
    from student_train.training.loop import RunResult, train
    from student_train.training.settings import TrainSettings
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "evaluation.evaluate": ("evaluate",),
            "evaluation.predict": ("Prediction", "predict"),
            "evaluation.settings": ("EvalOptions", "EvalSettings", "PredictSettings"),
            "interchange.classifier": ("export_classifier",),
            "interchange.huggingface": ("export_huggingface",),
            "interchange.onnx_tower": ("OnnxFile", "export_onnx"),
            "interchange.published": ("import_prompts",),
            "interchange.settings": (
                "ClassifierSettings",
                "HuggingFaceSettings",
                "ImportSettings",
                "OnnxSettings",
            ),
            "model.settings": ("PromptSettings",),
            "model.student": ("PromptedCLIP", "load_student"),
            "runs.record": ("read_metrics",),
            "training.loop": ("RunResult", "train"),
            "training.settings": ("TrainSettings",),
        },
    )

__all__ = [
    "ClassifierSettings",
    "EvalOptions",
    "EvalSettings",
    "HuggingFaceSettings",
    "ImportSettings",
    "OnnxFile",
    "OnnxSettings",
    "PredictSettings",
    "Prediction",
    "PromptSettings",
    "PromptedCLIP",
    "RunResult",
    "TrainSettings",
    "evaluate",
    "export_classifier",
    "export_huggingface",
    "export_onnx",
    "import_prompts",
    "load_student",
    "predict",
    "read_metrics",
    "train",
]
