"""Process memory on Linux: freed memory is kept for the next step instead of going back to the kernel."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Lets glibc reuse freed memory; returns whether glibc accepted the settings.

    XLA on a CPU allocates a program's temporaries anew at each call. By default glibc maps and unmaps blocks of that
    size, and the kernel clears every page of them each time, which slows down the steps of small models. With these
    settings the process keeps its peak memory until it ends; results are the same. `experiments/step_time` measures
    the gain.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2047 * _MIB, _M_TOP_PAD: 64 * _MIB}
    return all(mallopt(option, value) for option, value in settings.items())
