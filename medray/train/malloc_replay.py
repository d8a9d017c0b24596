"""What glibc's malloc takes from the system for a sequence of tensors: more than their bytes.

Blocks below its mmap threshold share one heap, and a hole between two live blocks is kept. How much
that is depends on sizes and order alone, so a fresh process does the same allocations and frees
without touching the memory, and asks malloc what it has taken. No torch here: it starts in no time.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence

ALIGNMENT = 64
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

# (number of the block, its bytes; -1: it is freed)
Event = tuple[int, int]


class _Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def available() -> bool:
    """Whether this process runs on glibc 2.33 or later."""
    return hasattr(ctypes.CDLL(None), "mallinfo2")


def peak_bytes(events: Sequence[Event]) -> int:
    """Most bytes that malloc held from the system while it served `events`, in a fresh process."""
    command = [sys.executable, "-m", "medray.train.malloc_replay"]
    done = subprocess.run(command, input=json.dumps(events), text=True, capture_output=True)
    assert done.returncode == 0, f"the replay of allocations failed: {done.stderr}"
    return int(done.stdout)


def replay(events: Sequence[Event]) -> int:
    """`peak_bytes` in this process, whose own heap should be as good as empty."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Info
    libc.posix_memalign.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    libc.free.argtypes = [ctypes.c_void_p]

    def held() -> int:
        info = libc.mallinfo2()
        return int(info.arena) + int(info.hblkhd)

    blocks: dict[int, ctypes.c_void_p] = {}
    before, peak = held(), 0
    for number, size in events:
        if size < 0:
            libc.free(blocks.pop(number))
            continue
        blocks[number] = ctypes.c_void_p()
        code = libc.posix_memalign(ctypes.byref(blocks[number]), ALIGNMENT, max(size, 1))
        assert code == 0, f"no address space for {size} bytes"
        peak = max(peak, held() - before)
    return peak


if __name__ == "__main__":
    print(replay(json.load(sys.stdin)))
