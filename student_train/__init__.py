"""Stage two: a frozen CLIP with learnable prompts, trained on hard and cached soft labels.

Public is what `__all__` names; all else may change. Each name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from student_train.classifier import export_classifier
    from student_train.command_settings import (
        ClassifierSettings,
        EvalOptions,
        EvalSettings,
        HuggingFaceSettings,
        ImportSettings,
        OnnxSettings,
        PredictSettings,
    )
    from student_train.evaluation import evaluate
    from student_train.huggingface import export_huggingface
    from student_train.loop import RunResult, train
    from student_train.onnx_tower import OnnxFile, export_onnx
    from student_train.prediction import Prediction, predict
    from student_train.published import import_prompts
    from student_train.run_record import read_metrics
    from student_train.settings import PromptSettings, TrainSettings
    from student_train.student import PromptedCLIP, load_student
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "classifier": ("export_classifier",),
            "command_settings": (
                "ClassifierSettings",
                "EvalOptions",
                "EvalSettings",
                "HuggingFaceSettings",
                "ImportSettings",
                "OnnxSettings",
                "PredictSettings",
            ),
            "evaluation": ("evaluate",),
            "huggingface": ("export_huggingface",),
            "loop": ("RunResult", "train"),
            "onnx_tower": ("OnnxFile", "export_onnx"),
            "prediction": ("Prediction", "predict"),
            "published": ("import_prompts",),
            "run_record": ("read_metrics",),
            "settings": ("PromptSettings", "TrainSettings"),
            "student": ("PromptedCLIP", "load_student"),
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
