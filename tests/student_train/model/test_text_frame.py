"""What tokenizers put around texts, of each family and of CLIP."""

import pytest
import torch

from student_train.model.text_frame import TextFrame, text_frame
from teacher_cache.errors import UnsupportedTowerError
from tests.models import loaded


@pytest.mark.parametrize(
    ("config", "frame"),
    [
        ("gelu", TextFrame((49406,), (49407,), 0)),
        ("siglip", TextFrame((), (), 1)),
        ("siglip2", TextFrame((), (1,), 0)),
        ("clipa", TextFrame((1,), (), 0)),
        ("full-first", TextFrame((1,), (2,), 0)),
    ],
)
def test_frames(config: str, frame: TextFrame) -> None:
    tokenizer = loaded(config).tokenizer
    assert text_frame(tokenizer) == frame
    tokens_BT = tokenizer(["", "photo", "photo of"])
    bodies = [frame.body(tokens_T) for tokens_T in tokens_BT]
    assert [len(body) for body in bodies] == [0, 1, 2]
    around = len(frame.start) + max(1, len(frame.end))
    assert frame.lengths(tokens_BT).tolist() == [around, around + 1, around + 2]
    assert bodies[2][0] == bodies[1][0]
    assert tokens_BT[2].tolist()[len(frame.start) :][:2] == bodies[2].tolist()


def test_a_token_behind_the_padding_is_refused() -> None:
    def tokenizer(texts: list[str]) -> torch.Tensor:
        tokens_BT = loaded("clipa").tokenizer(texts)
        tokens_BT[:, -1] = 5
        return tokens_BT

    with pytest.raises(UnsupportedTowerError, match="puts the token 5 behind the padding"):
        text_frame(tokenizer)
