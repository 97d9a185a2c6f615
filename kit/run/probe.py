"""Asked of a notebook's kernel once the notebook has run: what it computed on, and how much that took."""

from __future__ import annotations

import os
import sys


def probe() -> dict[str, str | int | float]:
    """`device` the kernel's process used, its peak resident `memory` in MiB (0 where the system does not say), and its
    `cpu` seconds, user and system, since the process started, with those of processes that it has waited for."""
    torch = sys.modules.get("torch")
    used_gpu = torch is not None and torch.cuda.is_initialized()
    try:
        import resource
    except ImportError:  # Windows
        peak = 0
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    times = os.times()
    return {
        "device": torch.cuda.get_device_name() if torch is not None and used_gpu else "cpu",
        "memory": peak,
        "cpu": round(times.user + times.system + times.children_user + times.children_system, 1),
    }
