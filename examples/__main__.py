"""Run all examples, each in a process of its own, and keep what they print: `python -m examples [--write] [NAME ..]`.

With `--write` the outputs go to `examples/outputs`; without, only times and failures are shown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from examples.timing import machine

FOLDER = Path(__file__).parent


def main() -> int:
    """Run what was asked for.

    Returns:
        The number of examples that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of file names; all without any")
    parser.add_argument("--write", action="store_true", help="keep the outputs in examples/outputs")
    given = parser.parse_args()
    failed = 0
    for file in sorted(FOLDER.glob("plot_*.py")):
        if given.names and not any(name in file.name for name in given.names):
            continue
        start = time.perf_counter()
        done = run(file)
        failed += done.returncode != 0
        print(f"{file.stem:28} {'failed' if done.returncode else 'ran'} in {time.perf_counter() - start:.0f} s")
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        elif given.write:
            kept = FOLDER / "outputs" / f"{file.stem}.txt"
            kept.parent.mkdir(exist_ok=True)
            lines = [f"# {machine()}", *(line.rstrip() for line in done.stdout.splitlines())]
            kept.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return failed


def run(file: Path) -> subprocess.CompletedProcess[str]:
    """Run one example as a user would, from the root of the repository."""
    root = FOLDER.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    code = [sys.executable, "-m", f"{FOLDER.name}.{file.stem}"]
    return subprocess.run(code, cwd=root, env=env, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
