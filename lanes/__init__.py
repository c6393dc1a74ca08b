"""Everything about engines: wire messages, host process, arbiter, the two lanes' engines, the embedded pair.

Only ``lanes.host`` and ``lanes.engines`` import mlx, so a client of a host starts in milliseconds.
"""
