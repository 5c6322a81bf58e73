"""How many rows of texts run through the text tower together, and what is kept for the backward pass.

Memory decides. If the activations of all rows fit, everything is kept, on a GPU in one chunk. If not, the
first chunks keep only what goes into some blocks, and the backward pass computes the rest again; it reaches
them last, when the others are freed.

In a tower without a causal mask the sequences are texts with their prompts; in a causal one, packs.

Shapes: K packs of S rows, P rows of the prefix, L blocks, W tower width.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from student_train.model.full_texts import FullTexts
from student_train.model.packing import PackedTexts
from student_train.model.prompts import Prompts
from student_train.model.vision_towers import vision_parts
from teacher_cache.compat.open_clip import is_own
from teacher_cache.teacher.text_towers import TextParts

GIB = 2**30
CPU_MEMORY = 5 * GIB // 2  # more is not faster there (`benchmarks/full_softmax.py`)
# Rows that run together on a CPU: what measures best. glibc maps each tensor of 32 MiB or more anew.
CPU_CHUNK_ROWS = 1536
FEWEST_CHUNK_ROWS = 4096  # on a GPU; smaller chunks do not fill it
GPU_SHARE = 0.9  # of a GPU's free memory; the rest is lost between blocks of its allocator
PARTLY_CHUNKS = 8  # if not all activations fit: more chunks keep more of them, and run smaller operations
PER_ROW = ("block", "last", "row", "forward", "backward")  # fields of `RowCosts`
WORK_SHARE = 4  # a recomputed chunk's activations may take one part in four of the memory


@dataclass(frozen=True)
class TextPlan:
    """A plan for the rows of a step.

    Attributes:
        chunks: pieces of the rows; each runs as one batch.
        recomputed: how many chunks, the first ones, are computed again in the backward pass.
        segment: number of blocks whose activations are computed again together.
        peak_bytes: predicted memory of forward and backward pass above weights and texts.
        full_rows: rows of a step in a tower without a causal mask: all positions of every class; 0 in a
            causal one.
    """

    chunks: int
    recomputed: int
    segment: int
    peak_bytes: int
    full_rows: int = 0

    def slices(self, packs: int) -> list[slice]:
        """Return the packs of each chunk; their numbers differ by at most one."""
        bounds = [chunk * packs // self.chunks for chunk in range(self.chunks + 1)]
        return [slice(begin, end) for begin, end in pairwise(bounds)]

    def __str__(self) -> str:
        kept = "all activations kept"
        if self.recomputed:
            blocks = "1 block" if self.segment == 1 else f"{self.segment} blocks"
            kept = f"{self.recomputed} of {self.chunks} recomputed, {blocks} at a time"
        chunks = "1 chunk" if self.chunks == 1 else f"{self.chunks} chunks"
        cost = ""
        if self.full_rows:
            cost = (
                f"; without a causal mask every class runs at all positions, {self.full_rows:,} rows a step "
                "(--classes-per-step runs fewer)"
            )
        return f"{chunks}, {kept}, {self.peak_bytes / 2**20:,.0f} MiB{cost}"


@dataclass(frozen=True)
class RowCosts:
    """Bytes per row of a tower's activations.

    Attributes:
        blocks: number of blocks, L.
        block: kept by a block for its backward pass.
        last: kept by the last block, of which only pooled rows are used.
        row: input of a block.
        forward: temporary in a block's forward pass.
        backward: temporary in a block's backward pass.
        weights: bytes, not per row, of the weights that autocast copies to half precision in each chunk; the
            copies are kept as activations are. 0 if the tower's own are in half precision.
    """

    blocks: int
    block: float
    last: float
    row: float
    forward: float
    backward: float
    weights: int

    def times(self, factor: float) -> "RowCosts":
        """Return the costs of `factor` as many rows."""
        per_row = {name: factor * getattr(self, name) for name in PER_ROW}
        return replace(self, **per_row)

    def kept(self) -> float:
        """Bytes a row keeps if nothing is computed again."""
        return (self.blocks - 1) * self.block + self.last

    def inputs(self, segment: int) -> float:
        """Bytes a row keeps if `segment` blocks at a time are computed again."""
        return -(-self.blocks // segment) * self.row

    def again(self, segment: int) -> float:
        """Bytes a row takes while its blocks are computed again."""
        return segment * self.block + self.backward


def row_costs(
    blocks: Any, size: float, prefix: float, pooled: float, element: int, key_copies: float = 1.0
) -> RowCosts:
    """Return the bytes per row of a tower.

    Args:
        blocks: of the tower.
        size: rows of a sequence, S.
        prefix: further rows that they attend to, P.
        pooled: share of the rows that the last block returns.
        element: bytes of a number in products: 4, or 2 under autocast.
        key_copies: share of the blocks that copy keys and values, to join them with further ones.
    """
    block = blocks[0]
    width = block.attn.in_proj_weight.shape[1]
    *first, last = (layer for layer in block.mlp.modules() if isinstance(layer, torch.nn.Linear))
    inner, hidden = sum(layer.out_features for layer in first), last.in_features  # inner: with the gate
    gated = inner > hidden
    normed = any(isinstance(layer, torch.nn.LayerNorm) for layer in block.mlp.modules())
    quick = any(is_own(module, "QuickGELU") for module in block.modules())
    keys = key_copies * 2 * width * element * (size + prefix) / size
    stream = 4 * width  # the residual stream is float32 also under autocast
    # QuickGELU needs its input and the sigmoid of it, a gate both factors
    kept_hidden = (inner + (quick + gated + normed) * hidden) * element
    products = [weight for weight in block.parameters() if weight.ndim > 1]
    copied = [weight for weight in products if weight.element_size() != element]
    after = stream + kept_hidden + width * element  # input of the second norm, hidden rows, attention
    return RowCosts(
        blocks=len(blocks),
        block=stream + 3 * width * element + keys + after,
        last=stream + keys + pooled * (2 * stream + width * element + after),
        row=stream,
        forward=stream + 2 * width * element,
        backward=stream + (2 + quick) * hidden * element,
        weights=len(blocks) * sum(weight.numel() for weight in copied) * element,
    )


def plan_texts(
    parts: TextParts,
    texts: PackedTexts | FullTexts,
    memory: int | None = None,
    prompts: Prompts | None = None,
) -> TextPlan:
    """Return the plan of a step's texts, under the current autocast.

    Args:
        parts: the text tower.
        texts: of the step.
        memory: bytes that may be used; None: `free_memory`.
        prompts: of a tower without a causal mask, where they are rows of every text.
    """
    device = parts.positional_embedding.device
    memory = free_memory(device) if memory is None else memory
    element = element_bytes(device)
    (packs, size), blocks, full_rows = texts.ids.shape, len(parts.blocks), 0
    if isinstance(texts, FullTexts):
        rows, full_rows = packs * size, packs * (size + texts.prompts)
        mask_row = 0 if texts.hidden is None else 1
        carried, own = _prompt_shares(prompts, blocks)
        costs = row_costs(parts.blocks, size, texts.prompts, 1 / size, element, own)
        costs = costs.times(1 + carried * texts.prompts / size)
    else:
        prefix, rows = 1 + texts.prompts, packs * size
        mask_row = size + prefix + 4
        costs = row_costs(parts.blocks, size, prefix, len(texts.slots) / rows, element)
    masks = element * rows * mask_row

    def planned(chunks: int, recomputed: int, segment: int) -> TextPlan:
        chunk_rows = -(-packs // chunks) * size
        first = recomputed * chunk_rows
        inputs = first * costs.inputs(segment) if recomputed else 0
        kept = (rows - first) * costs.kept() + (chunks - recomputed) * costs.weights
        forward = kept + inputs + chunk_rows * costs.forward
        backward = inputs + chunk_rows * costs.again(segment) + costs.weights if recomputed else 0
        peak = round(max(forward, backward) + masks)
        return TextPlan(chunks, recomputed, segment, peak, full_rows)

    smallest = CPU_CHUNK_ROWS if device.type == "cpu" else FEWEST_CHUNK_ROWS
    most = max(1, min(packs, round(rows / smallest)))
    for chunks in [most] if device.type == "cpu" else range(1, most + 1):
        plan = planned(chunks, 0, 0)
        if plan.peak_bytes <= memory:
            return plan
    chunks = most
    if device.type != "cpu":  # as few as leave memory for what is kept
        chunks = min(most, max(PARTLY_CHUNKS, -(-round(rows * costs.again(1)) * WORK_SHARE // memory)))
    all_again = [planned(chunks, chunks, segment) for segment in range(1, blocks + 1)]
    fitting = (plan for plan in all_again if plan.peak_bytes <= memory)
    least = next(fitting, min(all_again, key=lambda plan: plan.peak_bytes))
    partly = (planned(chunks, recomputed, least.segment) for recomputed in range(1, chunks))
    return next((plan for plan in partly if plan.peak_bytes <= memory), least)


def _prompt_shares(prompts: Prompts | None, blocks: int) -> tuple[float, float]:
    """Return the shares of the blocks with prompt rows in their output, and with own prompts."""
    if prompts is None:
        return 0.0, 0.0
    carrying = blocks - (1 if prompts.start is not None else prompts.depth)
    return carrying / blocks, prompts.depth / blocks


def image_bytes(visual: Any, prompts: Prompts | None, images: int) -> int:
    """Return the predicted memory of an image tower's forward and backward pass, under the current autocast.

    Args:
        visual: the tower.
        prompts: its prompts; None: nothing is kept.
        images: number of images.
    """
    if prompts is None:
        return 0
    tower = vision_parts(visual)
    rows = tower.rows
    element = element_bytes(prompts.q.device)
    costs = row_costs(tower.blocks, rows, prompts.length, tower.pooled_rows / rows, element)
    return int(images * rows * (costs.kept() + costs.forward) + costs.weights)


def element_bytes(device: torch.device) -> int:
    """Return the bytes of a number in products under the current autocast."""
    amp = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if amp else torch.float32
    return torch.finfo(dtype).bits // 8


def free_memory(device: torch.device) -> int:
    """Return the bytes for a step's activations: what is free on a GPU, `CPU_MEMORY` on a CPU."""
    if device.type != "cuda":
        return CPU_MEMORY
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + cached) * GPU_SHARE)
