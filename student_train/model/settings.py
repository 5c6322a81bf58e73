"""Settings of a student's prompts. Importing this module is fast."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from teacher_cache.classes.templates import PROMPT_WORDS
from teacher_cache.errors import UsageError

DEFAULT_DEPTH = 9  # as in MaPLe and PromptSRC
LONGEST_PROMPT = 4096  # bounds the memory that a student's file can request
Tower = Literal["text", "vision"]


class PromptSettings(BaseModel):
    """Settings of a student's prompts.

    A new field needs a default: stored students and runs are read through this class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    towers: Literal["both", "text", "vision"] = Field(default="both", description="towers with prompts")
    prompt_structure: Literal["qkv", "shared"] = Field(
        default="qkv", description="separate prompts for query, key and value (RPP), or one for all (IVLP)"
    )
    carry: Literal["replace", "residual"] = Field(
        default="replace",
        description="what happens to prompt positions between blocks: replace puts the block's own prompts "
        "there (as published), residual keeps them and adds the block's own prompts to the input of its norm",
    )
    prompt_depth: int | None = Field(
        default=None,
        ge=0,
        description=f"number of first blocks with their own prompts [default: {DEFAULT_DEPTH}, at most all]",
    )
    prompt_length: int = Field(default=4, ge=1, le=LONGEST_PROMPT, description="prompt positions per tower")
    vision_prompt_depth: int | None = Field(
        default=None, ge=0, description="another depth for the vision tower [default: --prompt-depth]"
    )
    vision_prompt_length: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST_PROMPT,
        description="another length for the vision tower [default: --prompt-length]",
    )
    prompt_init: str = Field(
        default=PROMPT_WORDS,
        description="words whose token embeddings the text prompts start from; further positions start "
        "random, further words are not used",
    )
    fixed_words: str = Field(
        default="",
        description="words between the text prompts and each class name, such as 'of a' behind MaPLe's two "
        "prompts [default: none]",
    )

    def depth_of(self, tower: Tower, blocks: int) -> int:
        """Return the prompt depth J in a tower of `blocks` blocks; 0 without prompts.

        Raises:
            UsageError: deeper than the tower.
        """
        if not self.has_prompts(tower):
            return 0
        depth = self._asked_depth(tower)
        if depth is None:
            return min(DEFAULT_DEPTH, blocks)
        if depth > blocks:
            raise UsageError(f"prompt depth {depth} is more than the {blocks} blocks of the {tower} tower")
        return depth

    def has_prompts(self, tower: Tower) -> bool:
        """Return whether a tower has prompts."""
        return self.towers in ("both", tower) and self._asked_depth(tower) != 0

    def _asked_depth(self, tower: Tower) -> int | None:
        own = self.vision_prompt_depth if tower == "vision" else None
        return self.prompt_depth if own is None else own

    def length_of(self, tower: Tower) -> int:
        """Return the prompt length n in a tower."""
        own = self.vision_prompt_length if tower == "vision" else None
        return self.prompt_length if own is None else own
