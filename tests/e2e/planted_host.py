"""A host that breaks where a prompt or a model's name says so; started with the path of a socket, as `lanes.host` is.

`OPTA_PLANTED` names a folder: what is to happen once only leaves a file there, and does not happen to the next host.
"""

import os
import sys
import time
from pathlib import Path

from lanes.engines.scripted import EOS, ScriptedEngine
from lanes.host import loader, residents
from lanes.host.__main__ import main

LOADING = residents.loading


def once(what):
    """True the first time, over all hosts."""
    try:
        (Path(os.environ["OPTA_PLANTED"]) / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class PlantedEngine(ScriptedEngine):
    """Does in a step what the prompt of one of its sequences says."""

    def step(self, limit_s=None):
        prompts = [bytes(token - 1 for token in spec.prompt if token != EOS).decode() for spec in self._specs.values()]
        asked = {word for prompt in prompts for word in prompt.split() if word.isupper()}
        if "ABORT" in asked or ("ABORT-ONCE" in asked and once("abort")):
            os.abort()
        if "ABORT-DECODING" in asked and self._decodes("ABORT-DECODING", 1):
            time.sleep(0.1)  # its first token reaches the router
            os.abort()
        if "ABORT-LATE" in asked and self._decodes("ABORT-LATE", 20):
            time.sleep(0.1)
            os.abort()
        if "HANG-ONCE" in asked and once("hang"):
            time.sleep(3600)
        if "SPIN-ONCE" in asked and (once("spin") or self._spins):
            self._spins = True
            time.sleep(0.01)
            return []
        if "PREFILL" in asked and self._prefilled < 100:
            self._prefilled += 1
            self.computed_tokens += 1
            time.sleep(0.03)
            return []
        return super().step(limit_s)

    def _decodes(self, word, tokens):
        """Whether a sequence with ``word`` in its prompt has that many tokens, and one of this engine."""
        marker = tuple(byte + 1 for byte in word.encode())
        marked = [spec for spec in self._specs.values() if spec.prompt[: len(marker)] == marker]
        return any(self._emitted[one.request_id] >= max(tokens, len(one.emitted) + 1) for one in marked)

    _spins = False
    _prefilled = 0


def loading(examined, *how):
    """Some models kill whoever loads them."""
    if examined.spec.name == "aborts-in-load":
        os.abort()
    return LOADING(examined, *how)


if __name__ == "__main__":
    residents.ScriptedEngine = PlantedEngine
    loader.loading = loading
    status = main()
    sys.stderr.flush()
    os._exit(status)
