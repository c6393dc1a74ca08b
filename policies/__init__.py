"""Pure decisions and the YAML that drives them: lanes, presets, clients, and which pairs may speculate.

Reads its own files and nothing else; no mlx, no HTTP, no clock.
"""
