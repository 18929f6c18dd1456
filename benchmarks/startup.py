"""Import time, and the wall time and peak memory of the whole demo in a process of its own.

Run: python benchmarks/startup.py
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from tables import heading, table

REPEATS = 11


def seconds_of(code: str) -> float:
    """Median wall seconds of a fresh interpreter running `code`."""
    runs = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        runs.append(time.perf_counter() - started)
    return statistics.median(runs)


def main() -> None:
    bare, ours, numpy = (
        seconds_of("pass"),
        seconds_of("import workbench"),
        seconds_of("import numpy"),
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "workbench", "demo", "--out", folder, "--json"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        wall = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)
    steps = json.loads(run.stdout)["seconds"]
    print(heading("Start-up and demo", packages=("torch", "transformers"), seed=None))
    print()
    rows = [
        [
            "import workbench, beyond a bare interpreter",
            f"{ours - bare:.3f} s (median of {REPEATS})",
        ],
        [
            "the same for import numpy",
            f"{numpy - bare:.3f} s; ratio {(ours - bare) / (numpy - bare):.2f}",
        ],
        ["workbench demo, wall", f"{wall:.0f} s, limit 180 s: ratio {wall / 180:.2f}"],
        ["workbench demo, peak memory", f"{peak:.2f} GiB"],
        *[[f"demo: {name}", f"{seconds:.1f} s"] for name, seconds in steps.items()],
    ]
    print(table(["what", "measured"], rows))


if __name__ == "__main__":
    main()
