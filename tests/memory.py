"""Memory of a process: what it has now, and the most that a job took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A job in a process of its own, and its most memory: VmHWM, for getrusage tells the parent's, too.
_RUN = """
import re, sys
from pathlib import Path
from jobs.{job} import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def resident_mb() -> float:
    """Memory of this process, in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb(job: str, *flags: object) -> float:
    """The most memory that a run of a job took; a quality gate may fail it."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(job=job), *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 5), done.stderr
    return int(done.stdout.split()[-1]) * 1024 / 1e6
