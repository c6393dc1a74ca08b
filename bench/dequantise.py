"""``python -m bench.dequantise SOURCE DESTINATION``: a model's directory again, in fp32."""

from __future__ import annotations

import sys

from mlx_lm import convert


def main() -> None:
    """Convert; see the module's docstring."""
    source, destination = sys.argv[1:]
    convert(source, destination, dequantize=True, dtype="float32")


if __name__ == "__main__":
    main()
