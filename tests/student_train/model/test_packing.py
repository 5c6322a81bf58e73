"""Packs of texts: every row sees exactly its own text, and beginnings that texts share exist once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.model import packing
from student_train.model.packing import PackedTexts, pack_texts
from teacher_cache.teacher.text_towers import TextParts, text_parts
from tests.models import loaded

SOT, EOT = 49406, 49407
# Few words, so that beginnings are shared; up to 40 tokens, so that some texts are longer than a pack.
TEXTS = st.lists(st.lists(st.integers(1, 3), min_size=0, max_size=40), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def parts() -> TextParts:
    return text_parts(loaded("gelu").model)


def tokens_of(texts: list[list[int]]) -> torch.Tensor:
    tokens = torch.zeros(len(texts), 77, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text) + 2] = torch.tensor([SOT, *text, EOT])
    return tokens


def text_at(packed: PackedTexts, end: int) -> tuple[list[int], list[int]]:
    """Token ids and positions of the rows that a row sees, in the order of the positions."""
    pack, row = divmod(end, packed.ids.shape[1])
    seen = packed.sees[pack, row].nonzero().flatten()
    seen = seen[packed.positions[pack, seen].argsort()]
    for number, ancestor in enumerate(seen.tolist(), start=1):
        assert set(packed.sees[pack, ancestor].nonzero().flatten().tolist()) == set(seen[:number].tolist())
    return packed.ids[pack, seen].tolist(), packed.positions[pack, seen].tolist()


@given(texts=TEXTS, prompts=st.integers(0, 6))
def test_every_end_sees_its_text_in_order(parts: TextParts, texts: list[list[int]], prompts: int) -> None:
    packed = pack_texts(parts, tokens_of(texts), prompts)
    packs, size = packed.ids.shape
    ends = packed.ends + size * torch.arange(packs)[:, None]
    for text, place in zip(texts, packed.places.tolist(), strict=True):
        expected = [*text, EOT]
        positions = list(range(1 + prompts, 1 + prompts + len(expected)))
        assert text_at(packed, int(ends.flatten()[packed.slots[place]])) == (expected, positions)
    assert packed.slots.tolist() == sorted(set(packed.slots.tolist()))
    texts_by_pack = torch.bincount(packed.slots // packed.ends.shape[1], minlength=packs)
    assert list(packed.texts_by_pack) == texts_by_pack.tolist()
    used = packed.sees.any(-1)
    assert used.sum() <= sum(len(text) + 1 for text in texts)
    assert used.any(-1).all(), "a pack without rows"


def test_what_texts_share_is_computed_once(parts: TextParts) -> None:
    texts = [[5], [5, 6], [5, 6, 7], [8], [5, 6], [5, 9]]
    packed = pack_texts(parts, tokens_of(texts), 4)
    nodes = {tuple([*text, EOT][: depth + 1]) for text in texts for depth in range(len(text) + 1)}
    assert int(packed.sees.any(-1).sum()) == len(nodes) == 10


def test_a_tree_larger_than_a_pack_is_cut(parts: TextParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK_ROWS", 8)
    packed = pack_texts(parts, tokens_of([[1, word] for word in range(2, 12)]), 0)
    assert packed.ids.shape[1] == 8
    assert len(packed.ids) == 4  # three of two rows each with the first word, twice; and again


def test_packs_are_nearly_full(parts: TextParts) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [[100 + i, *[1] * int(torch.randint(1, 6, (), generator=generator))] for i in range(1000)]
    packed = pack_texts(parts, tokens_of(texts), 4)
    assert packed.sees.any(-1).float().mean() > 0.98
