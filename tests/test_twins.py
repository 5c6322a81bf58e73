"""Every source file has a test file of its name at its place below `tests/`, or an entry below."""

# ruff: noqa: E501  # one line a file

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "student_train", "teacher_cache")

# FILE: the test file, below `tests/`, that tests it, and where it does not mention a name of FILE, a text that
# it has instead. Sorted, one line a file. `__init__.py` needs no test file.
TESTED_IN = {
    "pipeline/axes.py": "pipeline/test_sweep.py",
    "pipeline/baselines.py": "pipeline/test_rows.py",
    "pipeline/cli.py": "pipeline/test_sweep.py",
    "pipeline/demo/clips.py": "pipeline/test_demo.py",
    "pipeline/demo/compare.py": "pipeline/test_demo.py",
    "pipeline/demo/make_pictures.py": "pipeline/test_demo.py",
    "pipeline/demo/online.py": "pipeline/test_demo.py",
    "pipeline/demo/story.py": "pipeline/test_demo.py",
    "pipeline/report/inside.py": "pipeline/report/test_page.py",
    "pipeline/report/overview.py": "pipeline/report/test_gather.py",
    "pipeline/report/pieces.py": "pipeline/report/test_page.py",
    "pipeline/report/training.py": "pipeline/report/test_page.py: curves",
    "pipeline/run.py": "pipeline/test_recipe.py",
    "pipeline/settings.py": "test_startup.py",
    "pipeline/student_run.py": "pipeline/report/conftest.py",
    "pipeline/suite_run.py": "pipeline/test_suite.py",
    "pipeline/sweep_jobs.py": "pipeline/test_sweep.py",
    "pipeline/sweep_process.py": "pipeline/test_sweep.py",
    "pipeline/sweep_record.py": "pipeline/test_sweep.py",
    "student_train/cli.py": "student_train/training/test_loop.py",
    "student_train/compat/clip_benchmark.py": "student_train/test_clip_benchmark.py",
    "student_train/compat/onnxruntime.py": "student_train/interchange/test_onnx_tower.py",
    "student_train/compat/timm.py": "student_train/model/vision_towers/test_timm_tower.py: release_of_timm",
    "student_train/data/settings.py": "student_train/data/test_readers.py",
    "student_train/data/stored_views.py": "student_train/data/test_pixels.py",
    "student_train/evaluation/dataset_layouts.py": "student_train/evaluation/test_datasets.py",
    "student_train/evaluation/evaluators/accuracy.py": "student_train/evaluation/test_evaluate.py",
    "student_train/evaluation/evaluators/agreement.py": "student_train/evaluation/evaluators/test_evaluators.py",
    "student_train/evaluation/evaluators/base_to_new.py": "student_train/evaluation/evaluators/test_evaluators.py",
    "student_train/evaluation/evaluators/by_class.py": "student_train/evaluation/evaluators/test_evaluators.py",
    "student_train/evaluation/evaluators/calibration.py": "student_train/evaluation/evaluators/test_evaluators.py",
    "student_train/evaluation/evaluators/evaluator.py": "student_train/evaluation/evaluators/test_evaluators.py",
    "student_train/evaluation/image_features.py": "student_train/evaluation/test_evaluate.py",
    "student_train/evaluation/models.py": "student_train/evaluation/test_evaluate.py",
    "student_train/evaluation/settings.py": "test_startup.py",
    "student_train/figures.py": "student_train/evaluation/evaluators/test_evaluators.py",
    "student_train/interchange/settings.py": "test_startup.py",
    "student_train/markdown.py": "student_train/interchange/test_huggingface.py: | ",
    "student_train/model/full_texts.py": "student_train/model/test_full_tower.py",
    "student_train/model/hub.py": "student_train/interchange/test_huggingface.py",
    "student_train/model/model_card.py": "student_train/interchange/test_huggingface.py",
    "student_train/model/named_model.py": "student_train/evaluation/test_frozen_names.py",
    "student_train/model/prompts.py": "student_train/model/test_towers.py",
    "student_train/model/settings.py": "student_train/model/test_stored.py",
    "student_train/model/vision_check.py": "student_train/model/vision_towers/test_timm_tower.py: computes_otherwise",
    "student_train/model/vision_towers/open_clip.py": "student_train/model/test_towers.py: test_vision_equals_plain",
    "student_train/model/vision_towers/timm_eva.py": "student_train/model/vision_towers/test_timm_tower.py: num_kv_groups",
    "student_train/model/vision_towers/timm_vit.py": "student_train/model/vision_towers/test_timm_tower.py: ParallelScalingBlock",
    "student_train/model/vision_towers/vision_parts.py": "student_train/model/vision_towers/test_timm_tower.py: what works",
    "student_train/runs/record.py": "hostile/test_students.py",
    "student_train/training/checkpoint.py": "hostile/test_checkpoints.py",
    "student_train/training/inputs.py": "student_train/data/test_pixels.py",
    "student_train/training/losses/hard.py": "student_train/training/test_losses.py: hard",
    "student_train/training/losses/soft.py": "student_train/training/test_losses.py: soft",
    "student_train/training/losses/term.py": "student_train/training/test_losses.py",
    "student_train/training/optimizers/adamw.py": "student_train/training/test_optimizer.py",
    "student_train/training/optimizers/sgd.py": "student_train/training/test_optimizer.py",
    "student_train/training/preflight.py": "student_train/evaluation/test_preflight.py",
    "student_train/training/run_identity.py": "pipeline/report/test_gather.py",
    "student_train/training/settings.py": "test_startup.py",
    "teacher_cache/classes/splits.py": "teacher_cache/images/test_lists.py",
    "teacher_cache/command_settings.py": "test_startup.py",
    "teacher_cache/compat/distributed.py": "teacher_cache/compat/test_compat.py",
    "teacher_cache/compat/fsspec.py": "teacher_cache/compat/test_compat.py",
    "teacher_cache/compute/decoding.py": "teacher_cache/compute/test_part.py",
    "teacher_cache/distribution.py": "test_environments.py",
    "teacher_cache/encodings/dense.py": "teacher_cache/encodings/test_encoding.py",
    "teacher_cache/encodings/factored.py": "teacher_cache/encodings/test_encoding.py",
    "teacher_cache/encodings/factored_int8.py": "teacher_cache/encodings/cases.py",
    "teacher_cache/encodings/options.py": "teacher_cache/test_cli.py: encoding",
    "teacher_cache/encodings/registry.py": "teacher_cache/test_build.py: encoding",
    "teacher_cache/files/json_text.py": "hostile/test_students.py: nested too deeply",
    "teacher_cache/files/owner_record.py": "teacher_cache/files/test_lock_file.py",
    "teacher_cache/files/text_file.py": "hostile/test_vocabularies.py",
    "teacher_cache/images/rows.py": "teacher_cache/images/test_folder.py",
    "teacher_cache/images/statements.py": "teacher_cache/images/test_labels.py",
    "teacher_cache/info.py": "teacher_cache/test_cli.py",
    "teacher_cache/memory.py": "student_train/data/test_readers.py",
    "teacher_cache/model_names.py": "teacher_cache/teacher/test_openclip.py",
    "teacher_cache/pixels/drawn_views.py": "teacher_cache/compute/test_part.py",
    "teacher_cache/pixels/process.py": "teacher_cache/pixels/test_decoders.py",
    "teacher_cache/preflight.py": "student_train/evaluation/test_preflight.py",
    "teacher_cache/store/checksums.py": "teacher_cache/store/test_verify.py",
    "teacher_cache/store/folder.py": "teacher_cache/store/test_remote.py",
    "teacher_cache/store/header_objects.py": "hostile/test_caches.py: zarr.json",
    "teacher_cache/store/layout.py": "teacher_cache/compat/test_zarr.py",
    "teacher_cache/store/local_folder.py": "teacher_cache/store/test_lock.py",
    "teacher_cache/store/parts.py": "teacher_cache/store/test_cache_store.py",
    "teacher_cache/store/presence.py": "teacher_cache/test_cli.py: no cache at",
    "teacher_cache/store/records.py": "teacher_cache/test_build.py",
    "teacher_cache/store/remote_folder.py": "teacher_cache/store/test_remote.py",
    "teacher_cache/store/vocabularies.py": "hostile/test_vocabularies.py",
    "teacher_cache/teacher/text_towers/text_parts.py": "student_train/model/test_packing.py",
}


def twin(source: str) -> str:
    """The test file, below `tests/`, of a source file's name and place."""
    folder, _, name = source.rpartition("/")
    return f"{folder}/test_{name}"


def public_names(code: str) -> set[str]:
    """Names without a leading underscore that a file defines."""
    names = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
    return {name for name in names if not name.startswith("_")}


def test_every_source_file_has_a_test_file() -> None:
    files = {path.relative_to(ROOT).as_posix() for p in PACKAGES for path in (ROOT / p).rglob("*.py")}
    missing = {
        source
        for source in files - TESTED_IN.keys()
        if not source.endswith("/__init__.py") and not (ROOT / "tests" / twin(source)).exists()
    }
    assert not missing, "write a test file of this name, or add an entry to TESTED_IN"
    assert TESTED_IN.keys() <= files, "TESTED_IN has files that do not exist"
    assert list(TESTED_IN) == sorted(TESTED_IN)
    twins = {source for source in TESTED_IN if (ROOT / "tests" / twin(source)).exists()}
    assert not twins, "they have a test file of their name and need no entry"


def test_entries_name_a_file_that_tests_the_source() -> None:
    for source, entry in TESTED_IN.items():
        test, _, text = entry.partition(": ")
        content = (ROOT / "tests" / test).read_text(encoding="utf-8")
        words = public_names((ROOT / source).read_text(encoding="utf-8")) | {Path(source).stem}
        assert text in content if text else words & set(re.findall(r"\w+", content)), f"{source}: {entry}"
