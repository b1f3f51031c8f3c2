"""Memory of this process, as Linux counts it, for benchmarks on a CPU."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Return the memory in use."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """Return the peak memory since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset the peak."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
