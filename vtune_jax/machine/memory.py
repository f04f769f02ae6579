"""Process memory on Linux: keeping what is freed, instead of handing it back after every step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Lets glibc reuse freed memory; returns whether it agreed.

    XLA on a CPU allocates a program's temporaries anew at each call. By default glibc maps and unmaps blocks of that
    size, and the kernel clears every page of them each time: time that a small model's step notices. It changes
    nothing else but that the process keeps its peak memory. `experiments/step_time` measures it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2047 * _MIB, _M_TOP_PAD: 64 * _MIB}
    return all(mallopt(option, value) for option, value in settings.items())
