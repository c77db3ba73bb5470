"""The environment in which Paddle is fast on the processor it finds.

Paddle's CPU wheel carries an MKL from before 2020, which takes a slow path on AMD's processors unless it is said that
they have AVX2, and it starts with one thread. Both are settled by environment variables that are read once, when Paddle
loads. Besides, the C library gives every large tensor's memory back to the system and fetches it again page by page for
the next one, which can take longer than the arithmetic. And Paddle Inference hands every tensor that it is done with to
a thread of its own, which wakes some hundred times a pass and takes the processor from those that compute, unless it
waits for a few megabytes to free. The commands of this package therefore call
`set_cpu_environment` before they import Paddle, and a program of one's own does the same in its first lines::

    from paddle_dense.environment import set_cpu_environment

    set_cpu_environment()
    import paddle
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

_FREED_AT_ONCE = "0.005"  # GB
_CPUINFO = Path("/proc/cpuinfo")
# Of glibc's mallopt: up to which size memory is kept, and how much of it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT, _MOST_KEPT = 1 << 30, (1 << 31) - 1


def cpu_environment() -> dict[str, str]:
    """What is right for this machine's processor, as environment variables; nothing is changed.

    Returns:
        ``OMP_NUM_THREADS``, the number of cores that this process may use (its share, among the processes of
        ``paddle.distributed.launch``), ``FLAGS_eager_delete_tensor_gb``, how much memory Paddle Inference frees at a
        time, and on AMD's processors with AVX2 ``MKL_DEBUG_CPU_TYPE=5``.
    """
    variables = {"OMP_NUM_THREADS": str(_usable_cores()), "FLAGS_eager_delete_tensor_gb": _FREED_AT_ONCE}
    vendor, features = _processor()
    if "AMD" in vendor and "avx2" in features:
        variables["MKL_DEBUG_CPU_TYPE"] = "5"
    return variables


def set_cpu_environment() -> dict[str, str]:
    """Set what `cpu_environment` says in this process, but for variables that are set already, and keep freed memory.

    Returns:
        The variables that were set.

    Raises:
        RuntimeError: Paddle is loaded already and would not notice.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("Paddle has been imported already: call set_cpu_environment() before import paddle")
    variables = {name: value for name, value in cpu_environment().items() if name not in os.environ}
    os.environ.update(variables)
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        library.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
    return variables


def vector_lanes() -> int:
    """How many floats an instruction of this machine's processor works on: 16 with AVX-512, else 8, as with AVX2."""
    return 16 if "avx512f" in _processor()[1] else 8


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) // int(period))
    # paddle.distributed.launch says how many such processes it starts on this machine.
    return max(1, cores // int(os.environ.get("PADDLE_LOCAL_SIZE") or 1))


def _processor() -> tuple[str, str]:
    """Vendor and features; outside Linux the features are not known, and AMD has had AVX2 since 2015."""
    if not _CPUINFO.exists():
        return platform.processor(), "avx2"
    # In reverse, so that the first processor has the last word.
    lines = (line.partition(":") for line in reversed(_CPUINFO.read_text().splitlines()))
    entries = {name.strip(): value.strip() for name, _, value in lines}
    return entries.get("vendor_id", ""), entries.get("flags", "")
