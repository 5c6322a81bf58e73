"""What `rpp models` prints: which of open_clip's models can have prompts, and what training costs."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from pipeline.tables import Cells
from student_train.model.support import ModelSupport, model_support, step_costs, supported_models
from teacher_cache.conventions import described

PLACES = {(True, True): "both", (True, False): "text", (False, True): "vision", (False, False): "neither"}


def list_models() -> tuple[list[dict[str, Any]], list[str | Cells]]:
    """Return all models of open_clip, for JSON; and their table with a line that counts their tags."""
    found = supported_models()
    rows = [
        [
            model.model,
            _places(model),
            "yes" if model.exact_prefix else "no",
            _size(model),
            str(model.embedding),
            str(len(model.tags)),
        ]
        for model in found
    ]
    headings = ["model", "prompts", "exact prefix", "image", "embedding", "tags"]
    tags = Counter(dict.fromkeys(PLACES.values(), 0))
    for model in found:
        tags[_places(model)] += len(model.tags)
    counts = ", ".join(f"{number} {place}" for place, number in tags.items())
    return [asdict(model) for model in found], [
        Cells(headings, rows, [], names=1),
        f"{tags.total()} tags; prompts in: {counts}. rpp models NAME gives reasons, tags and a cost.",
    ]


def describe_model(name: str) -> tuple[dict[str, Any], list[str | Cells]]:
    """Return one model, for JSON, with `costs`; and its lines and tables.

    Raises:
        UsageError: unknown model.
    """
    model, costs = model_support(name), step_costs(name)
    lines: list[str | Cells] = [
        f"{model.model}: image {_size(model)}, embedding {model.embedding}",
        f"prompts: {_places(model)}{f' ({model.reason})' if model.reason else ''}",
    ]
    if model.text:
        exact = "yes" if model.exact_prefix else "no: every class name runs at all positions"
        lines.append(f"exact prefix: {exact}")
    if model.tags:
        tags = [[tag, described(fields)] for tag, fields in model.preprocessing.items()]
        lines.append(Cells(["tag", "its preprocessing"], tags, [], names=1))
    if costs:
        rows = [
            [part, f"{cost.rows:,}", f"{cost.teraflops:,.1f}", f"{cost.gib:,.1f}"]
            for part, cost in costs.items()
        ]
        headings = ["a step over", "rows", "TFLOP", "GiB if all is kept"]
        lines.append(Cells(headings, rows, [], names=1))
        lines.append(
            "Rough, from the configuration: forward and backward pass in float32, prompts of length 4. "
            "Images cost this only with vision prompts; texts that do not fit are recomputed (--text-memory)."
        )
    record = {**asdict(model), "costs": {part: asdict(cost) for part, cost in costs.items()}}
    return record, lines


def _places(model: ModelSupport) -> str:
    return PLACES[model.text, model.vision]


def _size(model: ModelSupport) -> str:
    size = model.image_size
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))
