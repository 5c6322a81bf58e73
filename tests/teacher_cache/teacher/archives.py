"""Weights files as others write them."""

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.models import loaded


def write_openai(path: Path, config: str = "quickgelu") -> Path:
    """Write a TorchScript archive like OpenAI's: half precision, with three numbers beside the parameters."""

    class Archived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = copy.deepcopy(loaded(config).model)
            for name, child in model.named_children():
                setattr(self, name, child)
            for name, parameter in model.named_parameters(recurse=False):
                setattr(self, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            for name, number in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
                self.register_buffer(name, torch.tensor(number))
            self.register_buffer("attn_mask", model.attn_mask, persistent=False)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            numbers = self.input_resolution + self.context_length + self.vocab_size
            x = self.token_embedding(text) + self.positional_embedding
            x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))[:, 0] @ self.text_projection
            return self.visual(image) @ x.T * self.logit_scale.exp() * numbers

    with warnings.catch_warnings(action="ignore"):
        example = (torch.ones(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.int64))
        traced = torch.jit.trace(Archived(), example, check_trace=False)
        for _, parameter in traced.named_parameters():
            parameter.data = parameter.data.half()
        torch.jit.save(traced, path)
    return path
