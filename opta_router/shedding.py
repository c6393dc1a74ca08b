"""When the device's memory is so full that no more work is taken on. Pure."""

from __future__ import annotations

from lanes.residency import written_bytes
from policies.quantities import MemoryAmount


def memory_shortage(used_bytes: int, device_bytes: int, shed: MemoryAmount, *, running: int) -> str | None:
    """Why new requests are turned away, in words; None if they are not.

    Weights are counted before they are loaded, but the caches of all that may run at once may be more than what was
    counted for them. Memory comes back as requests end: while none runs nobody is turned away, or it would be for ever.

    Args:
        used_bytes: what is in use, as of the device's last heartbeat.
        device_bytes: what there is; 0: not known.
        shed: from where on.
        running: requests that have a slot.
    """
    if not device_bytes or not running or used_bytes < shed.of(device_bytes):
        return None
    return (
        f"{written_bytes(used_bytes)} of the device's {written_bytes(device_bytes)} of memory are in use, and from "
        f"{written_bytes(shed.of(device_bytes))} on (memory.shed) nothing new is taken"
    )
