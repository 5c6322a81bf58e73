"""Stage two: a frozen CLIP with learnable prompts, trained on hard and cached soft labels.

Public is what `__all__` names; all else may change. `train`, `evaluate` and `predict` are the functions here,
not the files of these names. All is imported at once: torch and open_clip, which every file needs, take
nearly all of the time.
"""

from student_train.classifier import ClassifierSettings, export_classifier
from student_train.evaluate import EvalOptions, EvalSettings, evaluate
from student_train.huggingface import HuggingFaceSettings, export_huggingface
from student_train.onnx_tower import OnnxFile, OnnxSettings, export_onnx
from student_train.predict import Prediction, PredictSettings, predict
from student_train.prompts import PromptSettings
from student_train.published import ImportSettings, import_prompts
from student_train.run_folder import read_metrics
from student_train.settings import TrainSettings
from student_train.student import PromptedCLIP, load_student
from student_train.train import RunResult, train

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
