"""A run whose teacher is online: it looks at every batch, and nothing of the cache's soft labels is used.

For comparison with a cached run of the same settings: samples, crops and order are those of the cache. Both
have nearly the same losses, since the cache holds float16.

Shapes: B samples of a step, D embedding of the teacher, V views, N samples of the cache.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from student_train.data.join import Batch
from student_train.data.pixels import ViewRequests
from student_train.training.distributed import Processes
from student_train.training.inputs import make_pixels
from student_train.training.loop import Run
from student_train.training.settings import TrainSettings
from teacher_cache.compat.open_clip import PreprocessCfg
from teacher_cache.errors import UsageError
from teacher_cache.teacher.teacher import recorded_teacher


class OnlineRun(Run):
    """A run in one process whose teacher's features are computed from pixels, for `train`.

    If the student reads pixels of the same preprocessing, both read the same ones. If not, further worker
    processes render the views for the teacher.
    """

    def __init__(self, settings: TrainSettings, processes: Processes, device: torch.device) -> None:
        """Load the cache's teacher too.

        Raises:
            UsageError: as `Run`; the loss needs no teacher, the encoding has no image features, or there
                are several processes.
        """
        super().__init__(settings, processes, device)
        if not self.loss.reads_teacher:
            raise UsageError("a run with --soft-weight 0 needs no teacher")
        if not self.cache.keeps_image_features:
            raise UsageError(f"the encoding '{self.cache.encoding.name}' is not computed from image features")
        if processes.size > 1:
            raise UsageError("a run with the teacher online is one process")
        self.teacher = recorded_teacher(self.cache.teacher, device=str(device))
        preprocess, own = self.teacher.loaded.preprocess, self.student.base.preprocess
        shares_pixels = self.join.mode == "images" and equal_pixels(preprocess, own)
        # what the cache has of the student's own features is the teacher's: they are the same model
        self._shares_features = self.join.mode == "features" and settings.student_features is None
        self._pixels = (
            None if shares_pixels else make_pixels(settings, self.cache, preprocess, processes, device)
        )

    def batches(self, first: int, total: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps first .. total - 1 with the teacher's features of their pixels."""
        rendered = None
        if self._pixels is not None:
            rendered = self._pixels.decode(self._requests(first, total), self.join.batch_size)
        with closing(super().batches(first, total)) as batches:
            for batch in batches:
                pixels = batch.pixels if rendered is None else next(rendered)
                features_BD = self._features(pixels)
                own = features_BD if self._shares_features else batch.student_features
                yield replace(batch, teacher={"image_features": features_BD}, student_features=own)

    def _features(self, pixels_BCHW: Tensor | None) -> Tensor:
        assert pixels_BCHW is not None
        return self.teacher.image_features(pixels_BCHW).clone()  # gradients refuse tensors of inference mode

    def _requests(self, first: int, total: int) -> Iterator[ViewRequests]:
        """Yield the views of each step."""
        every = slice(None)
        crops_VN5 = np.stack([self.cache.crops(every, view) for view in range(self.cache.num_views)])
        for step in range(first, total):
            rows, views = self.join.step_samples(step)
            yield ViewRequests(rows, views, crops_VN5[views, rows])


def equal_pixels(one: PreprocessCfg, other: PreprocessCfg) -> bool:
    """Return whether two models read the same pixels of a view, before they are normalised."""
    return replace(one, mean=other.mean, std=other.std) == other
