"""Checks that need no heavy imports: files and folders that options name must exist.

Commands run them before they import torch, zarr and the rest, which takes seconds. The functions that do the
work check the same again, and what needs a file's content or a network.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from teacher_cache.classes.templates import TEMPLATE_SETS, load_templates
from teacher_cache.classes.vocabulary import require_vocabulary
from teacher_cache.command_settings import (
    BuildSettings,
    ComputeSettings,
    ExtendSettings,
    RelabelSettings,
    RenderSettings,
)
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.files.hub import is_on_hub
from teacher_cache.files.places import place_of
from teacher_cache.files.remote import is_remote
from teacher_cache.images.sources import find_source
from teacher_cache.model_names import HF_HUB, LOCAL_DIR, canonical_model_name, require_model_folder
from teacher_cache.store.presence import require_cache, require_writable_place

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npy", ".npz", ".ckpt", ".tar")


def require_images(source: str) -> None:
    """Refuse a local image source that does not exist.

    Raises:
        UsageError: no file or folder, or files of several kinds.
    """
    if not is_remote(source):
        find_source(source)


def require_classes(classes: str | None, templates: str | None = None) -> None:
    """Refuse a vocabulary or a template file that does not exist, and templates without a field.

    Raises:
        UsageError: a file or name is missing.
    """
    if classes is not None:
        require_vocabulary(classes)
    if templates is not None and templates not in TEMPLATE_SETS:
        load_templates(templates)


def require_model(model: str, pretrained: str | None) -> None:
    """Refuse a model folder or a weights file that does not exist. open_clip checks names and tags later.

    Raises:
        UsageError: a folder or file is missing, or a weights file stands in place of the model.
    """
    if model.endswith(WEIGHTS_SUFFIXES) and os.path.isfile(place_of(model)):
        raise UsageError(
            f"the model '{model}' is a file; give the name of its model, ViT-B-16 for example, and the file "
            "with --pretrained"
        )
    name = canonical_model_name(model)
    require_model_folder(name)
    if name.startswith((LOCAL_DIR, HF_HUB)) or pretrained is None:
        return
    if is_on_hub(pretrained):
        return
    file = Path(place_of(pretrained))
    if ("/" in pretrained or file.suffix in WEIGHTS_SUFFIXES) and not os.path.isfile(file):
        raise UsageError(f"--pretrained '{pretrained}': no such weights file")


def require_bokeh(settings: ComputeSettings) -> None:
    """Refuse a dashboard without the package that draws it. Dask checks the package's version later.

    Raises:
        UsageError: it is not installed.
    """
    if settings.dashboard_port is not None and find_spec("bokeh") is None:
        raise UsageError("--dashboard needs the package bokeh: pip install 'rpp-clip[dashboard]'")


def check_build(settings: BuildSettings) -> None:
    """Refuse a build whose images, vocabulary, templates, model folder or weights file do not exist, and one
    with a dashboard that cannot be shown.

    Raises:
        UsageError: the first of them.
    """
    rpp_version()
    require_bokeh(settings)
    require_writable_place(settings.out)
    require_classes(settings.classes, settings.templates)
    require_images(settings.images)
    require_model(settings.teacher, settings.pretrained)


def check_relabel(cache: str, settings: RelabelSettings) -> None:
    """Refuse another vocabulary whose cache, class names or templates do not exist.

    Raises:
        UsageError: the first of them.
    """
    require_cache(cache)
    require_classes(settings.classes, settings.templates)
    if settings.teacher is not None:
        require_model(settings.teacher, settings.pretrained)


def check_extend(cache: str, settings: ExtendSettings) -> None:
    """Refuse more views if the cache, images or weights file do not exist, or a dashboard cannot be shown.

    Raises:
        UsageError: the first of them.
    """
    require_bokeh(settings)
    require_cache(cache)
    if settings.images is not None:
        require_images(settings.images)
    if settings.teacher is not None:
        require_model(settings.teacher, settings.pretrained)


def check_render(cache: str, settings: RenderSettings) -> None:
    """Refuse to render views if the cache, images or weights file do not exist.

    Raises:
        UsageError: the first of them.
    """
    require_cache(cache)
    require_writable_place(cache)
    if settings.images is not None:
        require_images(settings.images)
    if settings.teacher is not None:
        require_model(settings.teacher, settings.pretrained)


def require_file(path: Path) -> None:
    """Refuse a file that does not exist.

    Raises:
        UsageError: it does not exist, or is a folder.
    """
    if not os.path.exists(path):
        raise UsageError(f"{path} cannot be read: No such file or directory")
    if os.path.isdir(path):
        raise UsageError(f"{path} cannot be read: Is a directory")
