"""Check that a vision tower is computed here as the installed release of its library computes it.

`towers.py` runs timm's blocks by their parts. A later release of timm may give them a further part, which
would be left out without a word.
"""

from typing import Any

import torch

from student_train.compat.timm import VERSION
from student_train.model.towers import encode_image
from teacher_cache.compat.open_clip import is_own
from teacher_cache.errors import UnsupportedTowerError

LARGEST_DIFFERENCE = 1e-3  # relative to the largest feature; float32 gives 1e-6, TF32 on a GPU 1e-4


@torch.no_grad()
def check_vision_tower(visual: Any) -> None:
    """Compare features of one image of noise, computed here without prompts and by the tower itself.

    Does nothing for towers of open_clip itself, and without weights (device `meta`).

    Args:
        visual: the tower, in evaluation mode.

    Raises:
        UnsupportedTowerError: they differ.
    """
    weight = next(visual.parameters())
    if not is_own(visual, "TimmModel") or weight.is_meta:
        return
    size = visual.trunk.patch_embed.img_size
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(weight.device)
    expected_1D, found_1D = visual(noise), encode_image(visual, None, noise)
    difference = float((found_1D - expected_1D).abs().max() / expected_1D.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise UnsupportedTowerError(
            f"the vision tower {type(visual.trunk).__name__} of timm {VERSION} cannot carry prompts: "
            f"computed block by block, its features differ by {difference:.1e} of the largest (expected at "
            f"most {LARGEST_DIFFERENCE:.0e}); rpp is tested with timm 1.0.17 to 1.0.31"
        )
