"""How long `import focus_rag` takes in a fresh interpreter, and that it loads no torch.

python -m benchmarks.import_time
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
begin = time.perf_counter()
import {module}
seconds = time.perf_counter() - begin
print(seconds, "torch" in sys.modules, "transformers" in sys.modules)
"""
MODULES = ("focus_rag", "focus_rag.noise", "focus_rag.alpha")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    result = {}
    for module in MODULES:
        seconds, heavy = [], set()
        for _ in range(options.runs):
            command = [sys.executable, "-c", PROGRAM.format(module=module)]
            elapsed, *loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            seconds.append(float(elapsed))
            heavy |= {name for name, flag in zip(("torch", "transformers"), loaded, strict=True) if flag == "True"}
        result[module] = {
            "median_seconds": round(statistics.median(seconds), 4),
            "worst_seconds": round(max(seconds), 4),
            "loads": sorted(heavy),
        }
    text = json.dumps(result, indent=2) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
