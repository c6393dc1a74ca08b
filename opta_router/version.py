"""Which opta_router this is."""

from __future__ import annotations

import importlib.metadata
from typing import Final

VERSION: Final = importlib.metadata.version("opta-router")
