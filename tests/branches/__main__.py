"""Many random programs, by seed: `python -m tests.branches --first 0 --count 100000 --processes 2`.

Each program is the one of its seed, so a run may be cut into ranges, and a failure is found again by `reduced(seed)`.
"""

import argparse
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from time import perf_counter

from tests.branches.compare import check
from tests.branches.program import DEVICE


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.branches", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where the programs run")
    parser.add_argument("--out", type=Path, help="a JSON file of what was seen so far; a run goes on where it stopped")
    args = parser.parse_args()
    os.environ[DEVICE] = args.device  # for the processes
    stop, began = args.first + args.count, perf_counter()
    seen, failed, done = Counter(), [], args.first
    if args.out and args.out.exists():
        before = json.loads(args.out.read_text())
        if before["first"] != args.first:
            raise SystemExit(f"{args.out} is of seeds from {before['first']}; give another file")
        seen, failed, done = Counter(before["seen"]), before["failed"], before["next"]
    chunks = [range(first, min(first + 50, stop)) for first in range(done, stop, 50)]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=40) as pool:
        for after, more, errors in pool.imap(check, chunks):
            seen, failed = seen + more, failed + errors
            for seed, error in errors:
                print(f"seed {seed}: {error}", flush=True)
            if args.out:
                state = {"first": args.first, "next": after, "seen": dict(seen), "failed": failed}
                args.out.write_text(json.dumps(state))
    print(f"{dict(seen)}; {len(failed)} failed; {perf_counter() - began:.0f} s")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
