"""Size and error of each encoding, on a real teacher's features.

    python benchmarks/encodings.py --images 'emoji/{noto,fluent-flat}.tar' --labels emoji/classes.txt \\
        --teacher models/student --classes emoji/classes.txt imagenet-22k

Soft labels that come back are compared, in float64, with the exact ones of unrounded features.
Prints one Markdown table a vocabulary, or everything as JSON.
"""

import argparse
import itertools
import json
import time
from typing import Any

import torch
from torch import Tensor

from student_train.evaluation.image_features import encode_images
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.encodings import ClassHead, Encoding, encoding_of
from teacher_cache.encodings.topk import KNOTS
from teacher_cache.images.index import index_images
from teacher_cache.softlabels import SIGNED
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher, choose_device

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
BETWEEN_KNOTS = [(a * b) ** 0.5 for a, b in itertools.pairwise(KNOTS)]
BATCH = 64


def image_features(arguments: argparse.Namespace, teacher: Teacher) -> Tensor:
    """Unit features of randomly drawn images, [N, D] float32."""
    samples, _ = index_images(arguments.images, load_vocabulary(arguments.labels))
    features_ND = encode_images([teacher], samples).features[teacher.image_tower]
    generator = torch.Generator().manual_seed(0)
    return features_ND[torch.randperm(len(features_ND), generator=generator)[: arguments.samples]]


def measure(encoding: Encoding, features_ND: Tensor, head: ClassHead) -> dict[str, Any]:
    """Bytes, milliseconds a view of encoding, and the errors at each temperature."""
    largest, kl, worst_kl = (dict.fromkeys(TEMPERATURES, 0.0) for _ in range(3))
    seconds, kept_error = 0.0, 0.0
    for features_BD in features_ND.split(BATCH):
        started = time.perf_counter()
        arrays = encoding.encode(features_BD, head)
        seconds += time.perf_counter() - started
        stored = {
            name: torch.from_numpy(values.astype(SIGNED.get(values.dtype.name, values.dtype)))
            for name, values in arrays.items()
        }
        exact_BC = head.logit_scale * features_BD.double() @ head.class_features_CD.double().T
        for t in TEMPERATURES:
            log_p = torch.log_softmax(exact_BC / t, 1)
            log_q = torch.log_softmax(encoding.logits(stored, head, t).double() / t, 1)
            kl_B = (log_p.exp() * (log_p - log_q)).sum(1)
            largest[t] = max(largest[t], float((log_p.exp() - log_q.exp()).abs().max()))
            kl[t] += float(kl_B.sum()) / len(features_ND)
            worst_kl[t] = max(worst_kl[t], float(kl_B.max()))
        if encoding.name == "topk":
            kept = stored["topk_classes"].long()
            for t in BETWEEN_KNOTS:
                p = torch.softmax(exact_BC / t, 1).gather(1, kept)
                q = torch.softmax(encoding.logits(stored, head, t).double() / t, 1).gather(1, kept)
                kept_error = max(kept_error, float((p - q).abs().max()))
    return {
        "bytes_a_view": encoding.bytes_a_view(features_ND.shape[1], len(head.class_features_CD)),
        "encode_ms_a_view": 1000 * seconds / len(features_ND),
        "largest_probability_error": largest,
        "mean_kl": kl,
        "largest_kl": worst_kl,
        "kept_error_between_knots": kept_error if encoding.name == "topk" else None,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: largest error of a probability / mean KL in nats, a column a temperature."""
    lines = [
        "| encoding | bytes a view | " + " | ".join(f"T = {t:g}" for t in TEMPERATURES) + " |",
        "|---" * (2 + len(TEMPERATURES)) + "|",
    ]
    for name, figures in result["encodings"].items():
        errors = [
            f"{figures['largest_probability_error'][t]:.0e} / {figures['mean_kl'][t]:.0e}"
            for t in TEMPERATURES
        ]
        lines.append(f"| {name} | {figures['bytes_a_view']:,} | " + " | ".join(errors) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", required=True, help="image source")
    parser.add_argument("--labels", required=True, help="vocabulary that the images' labels index")
    parser.add_argument("--classes", nargs="+", required=True, help="vocabularies to compare over")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--logit-scale", type=float, help="take this one in place of the teacher's")
    parser.add_argument("--samples", type=int, default=500, help="images, drawn at random")
    parser.add_argument("--topk", type=int, nargs="+", default=[16, 100, 1000])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    loaded = load_model(arguments.teacher, arguments.pretrained)
    teacher = Teacher(loaded, choose_device("cpu"))
    features_ND = image_features(arguments, teacher)
    scale = arguments.logit_scale or loaded.logit_scale
    results = []
    for source in arguments.classes:
        vocabulary = load_vocabulary(source)
        head = ClassHead(teacher.class_features(vocabulary), scale)
        records: dict[str, dict[str, Any]] = {
            "factored": {"name": "factored"},
            "factored-int8": {"name": "factored-int8"},
            **{f"topk, K = {k}": {"name": "topk", "k": k} for k in arguments.topk if k < len(vocabulary)},
            "dense": {"name": "dense"},
        }
        result = {
            "vocabulary": source,
            "classes": len(vocabulary),
            "samples": len(features_ND),
            "embedding": features_ND.shape[1],
            "logit_scale": scale,
            "encodings": {
                name: measure(encoding_of(record), features_ND, head) for name, record in records.items()
            },
        }
        results.append(result)
        if not arguments.json:
            print(f"\n{len(vocabulary):,} classes, {len(features_ND)} images, logit scale {scale:.1f}\n")
            print(table(result), flush=True)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
