"""``python -m opta_router``."""

import sys

from opta_router.cli import main

sys.exit(main())
