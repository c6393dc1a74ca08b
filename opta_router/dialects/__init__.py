"""API dialects: bytes to a canonical request, events to bytes. Pure; they alone know statuses and bodies."""
