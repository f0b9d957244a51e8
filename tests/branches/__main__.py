"""Many random programs, by seed: `python -m tests.branches --first 0 --count 100000 --processes 2`.

Each program is the one of its seed and families, so a run may be cut into ranges, and a failure is found again by
`reduced(seed, families)`. With `--families` the JSON file also counts in how many programs a family occurred and in how
many a line of it ended inside a rewritten region, and the ATen ops of these regions.
"""

import argparse
import json
import multiprocessing
import os
from collections import Counter
from functools import partial
from pathlib import Path
from time import perf_counter

from tests.branches.compare import check
from tests.branches.families import families_of
from tests.branches.program import DEVICE


def table(seen, families):
    """What is written of the counts: flat ones, by family, and by op."""
    counts = {name: count for name, count in seen.items() if ": " not in name}
    if not families:
        return {"seen": counts}
    by_family = {
        name: {"programs": seen[f"family: {name}"], "rewritten": seen[f"rewritten: {name}"]} for name in families
    }
    ops = {name.partition(": ")[2]: count for name, count in seen.most_common() if name.startswith("op: ")}
    return {"seen": counts, "families": by_family, "ops": ops}


def counted(state):
    """The counts that `table` wrote."""
    seen = Counter(state["seen"])
    for name, count in state.get("families", {}).items():
        seen[f"family: {name}"], seen[f"rewritten: {name}"] = count["programs"], count["rewritten"]
    seen.update({f"op: {name}": count for name, count in state.get("ops", {}).items()})
    return seen


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.branches", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where the programs run")
    parser.add_argument("--out", type=Path, help="a JSON file of what was seen so far; a run goes on where it stopped")
    parser.add_argument("--families", default="", help='families that programs may have besides, with commas, or "all"')
    args = parser.parse_args()
    families = families_of(args.families)
    os.environ[DEVICE] = args.device  # for the processes
    stop, began = args.first + args.count, perf_counter()
    seen, failed, done = Counter(), [], args.first
    if args.out and args.out.exists():
        before = json.loads(args.out.read_text())
        if before["first"] != args.first:
            raise SystemExit(f"{args.out} is of seeds from {before['first']}; give another file")
        if list(before.get("families", {})) != list(families):
            raise SystemExit(f"{args.out} is of other families; give another file")
        seen, failed, done = counted(before), before["failed"], before["next"]
    chunks = [range(first, min(first + 50, stop)) for first in range(done, stop, 50)]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=40) as pool:
        for after, more, errors in pool.imap(partial(check, families=families), chunks):
            seen, failed = seen + more, failed + errors
            for seed, error in errors:
                print(f"seed {seed}: {error}", flush=True)
            if args.out:
                state = {"first": args.first, "next": after, **table(seen, families), "failed": failed}
                args.out.write_text(json.dumps(state))
    print(f"{table(seen, families)}; {len(failed)} failed; {perf_counter() - began:.0f} s")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
