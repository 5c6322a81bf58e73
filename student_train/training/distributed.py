"""One run in several processes: each computes a share of the step's images and of its classes.

torchrun starts the processes. Each has the same prompts and takes the same steps. The text tower runs over
1/W of the classes in each process, and the features are gathered with their gradient. Once per step the
processes agree on whether to stop and whether one failed. With a single process nothing here has an effect.

Shapes: W processes, C classes of the step, N classes of one process (C / W, rounded up), K = W · N,
D embedding.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from teacher_cache.errors import RppError, UsageError
from teacher_cache.teacher.teacher import choose_device

# The others wait while a process indexes images or reads features.
TIMEOUT = timedelta(hours=2)

Result = TypeVar("Result")


class AgreedError(RppError):
    """A failure that every process knows of and raises; the first process reports it."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank, size: number of this process, and of all processes.
        local_rank, local_size: the same among the processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def choose_device(self, device: str) -> torch.device:
        """As `teacher_cache.teacher.teacher.choose_device`, with a separate GPU for each process.

        Raises:
            UsageError: no such device, or one GPU named for several processes.
        """
        if self.size > 1 and device.startswith("cuda:"):
            raise UsageError(f"--device {device} names one GPU for {self.size} processes; use --device cuda")
        if self.size > 1 and choose_device(device).type == "cuda":
            return choose_device(f"cuda:{self.local_rank}")
        return choose_device(device)

    def agree(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call `work` in every process; if it fails in one, every process raises that error.

        Args:
            work: must not communicate between the processes.
            arguments: of `work`.

        Raises:
            AgreedError: the work failed in some process.
        """
        return self.agree_or_stop(partial(work, *arguments), [])[0]

    def agree_or_stop(self, work: Callable[[], Result], signals: Sequence[int]) -> tuple[Result, int]:
        """As `agree`, and find out whether any process received a signal.

        Args:
            signals: what this process received.

        Returns:
            What the work returned, and the largest first signal of all processes; 0 = none.

        Raises:
            AgreedError: the work failed in some process.
        """
        stop = signals[0] if signals else 0
        if self.size == 1:
            return work(), stop
        result: Any = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others must not wait: it is raised below
            failure = error
        state = torch.tensor([self.size - self.rank if failure else 0, stop])
        with _name_lost_process():
            dist.all_reduce(state, dist.ReduceOp.MAX)
        failing, stop = state.tolist()
        if failing:
            first = self.size - failing
            message: list[Any] = [_one_line(failure, first), getattr(failure, "exit_code", 1)]
            dist.broadcast_object_list(message, src=first)
            raise AgreedError(*message) from failure
        return result, stop

    def own_classes(self, classes_C: Tensor) -> Tensor:
        """The classes that this process encodes, [N]: every W-th. The last class is repeated where needed, so
        that all processes have equally many."""
        n = -(-len(classes_C) // self.size)
        own_N = torch.arange(n, device=classes_C.device) * self.size + self.rank
        return classes_C[own_N.clamp(max=len(classes_C) - 1)]

    def gather_classes(self, own_features_ND: Tensor, classes: int) -> Tensor:
        """Gather the features of all classes, [C, D], in the order of the step's classes.

        Their gradients are summed over the processes, always in the same order, in the process that encoded
        them.
        """
        if self.size == 1:
            return own_features_ND
        gathered: Tensor = _GatherClasses.apply(own_features_ND, self.size, classes)
        return gathered

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], figures: Tensor) -> Tensor:
        """Sum the gradients over the processes, always in the same order.

        Args:
            parameters: their `grad` becomes the sum, bit-equal in every process.
            figures: [F] float32 values of this process's share of the step.

        Returns:
            The sum of the figures.
        """
        if self.size == 1:
            return figures
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        own = torch.cat([figures, *(gradient.flatten() for gradient in gradients)])
        gathered = own.new_empty(self.size * len(own))
        with _name_lost_process():
            _gather_into(gathered, own)
        total = gathered.view(self.size, -1).sum(0)
        sums = total[len(figures) :].split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, sums, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return total[: len(figures)]


def _one_line(failure: Exception | None, rank: int) -> str:
    kind = "" if isinstance(failure, RppError) else f"{type(failure).__name__}: "
    return f"process {rank}: {kind}{failure}" if rank else f"{kind}{failure}"


# Newer releases of torch deprecate the older name.
_gather_into: Callable[[Tensor, Tensor], Any] = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)


class _GatherClasses(torch.autograd.Function):
    """[N, D] of each process -> [C, D]; class i is row i // W of process i % W."""

    @staticmethod
    def forward(ctx: Any, own_ND: Tensor, size: int, classes: int) -> Tensor:
        ctx.size, ctx.n = size, len(own_ND)
        gathered_KD = own_ND.new_empty(size * len(own_ND), own_ND.shape[1])
        with _name_lost_process():
            _gather_into(gathered_KD, own_ND.contiguous())
        gathered_CD: Tensor = gathered_KD.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)[:classes]
        return gathered_CD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_CD,) = gradients
        padded_KD = gradient_CD.new_zeros(ctx.n * ctx.size, gradient_CD.shape[1])
        padded_KD[: len(gradient_CD)] = gradient_CD
        sent_WND = padded_KD.unflatten(0, (ctx.n, ctx.size)).transpose(0, 1).contiguous()
        received_WND = torch.empty_like(sent_WND)
        with _name_lost_process():
            dist.all_to_all_single(received_WND, sent_WND)
        return received_WND.sum(0), None, None


@contextmanager
def _name_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise when the other end is gone
        raise RppError(
            f"the processes of this run lost their connection ({str(error).splitlines()[0]}); if one of them "
            "ended, its own message has the reason"
        ) from error


@contextmanager
def joined_processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Connect the processes that torchrun started while the block runs; yield them and this one's device.

    Raises:
        UsageError: no such device.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        single = Processes()
        yield single, single.choose_device(device)
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    processes = Processes(*(int(os.environ[name]) for name in names))
    chosen = processes.choose_device(device)
    # `agree` uses CPU tensors: a GPU does not wait for it
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_initialized():  # by a caller with several runs
        yield processes, chosen
        return
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield processes, chosen
    except AgreedError:
        dist.destroy_process_group()
        raise
    # after any other error the process just ends: destroying the group would wait for the others
    dist.destroy_process_group()
