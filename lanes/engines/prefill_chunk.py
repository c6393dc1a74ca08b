"""How many prompt tokens a step of a batch may take, from what steps cost here."""

from __future__ import annotations

from typing import Final

SIZES: Final = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Few, because a GPU compiles and caches for each shape."""

UNMEASURED_TOKENS: Final = 64
SMOOTHING: Final = 0.15
"""Weight of the newest step in a mean: about seven steps of memory, more than a scheduling hiccup."""


class PrefillChunk:
    """A step decodes the batch and takes a chunk of prompt: seconds are taken as a constant plus so much a token."""

    def __init__(self) -> None:
        self._decode_s = 0.0
        self._token_s: float | None = None

    def observe(self, prompt_tokens: int, seconds: float) -> None:
        """Book one step."""
        if prompt_tokens == 0:
            self._decode_s += SMOOTHING * (seconds - self._decode_s)
            return
        token_s = max(seconds - self._decode_s, 0.0) / prompt_tokens
        self._token_s = token_s if self._token_s is None else self._token_s + SMOOTHING * (token_s - self._token_s)

    def choose(self, limit_s: float) -> int:
        """The largest of :data:`SIZES` with which a step should stay within ``limit_s``; the smallest if none does."""
        if self._token_s is None:
            return UNMEASURED_TOKENS
        room_s = limit_s - self._decode_s
        return max((size for size in SIZES if size * self._token_s <= room_s), default=SIZES[0])
