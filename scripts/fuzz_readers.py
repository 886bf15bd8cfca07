"""Damaged files through every reader, for as long as you like.

    python scripts/fuzz_readers.py [--minutes 10] [--memory-gb 16]

Runs tests/test_fuzz_readers.py again and again with new examples each time. Address space is bounded, so that memory
which is asked for outside Python's sight fails too. Ends with status 1 at the first failure, which pytest prints with
the seed that gives it again.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Runs rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--examples", type=int, default=2000, help="examples of each test in a round")
    parser.add_argument("--memory-gb", type=float, default=16, help="bound of a round's address space")
    args = parser.parse_args()
    bound = int(args.memory_gb * 2**30)
    end, rounds = time.monotonic() + 60 * args.minutes, 0
    while time.monotonic() < end:
        seed = str(int.from_bytes(os.urandom(4), "little"))
        command = [sys.executable, "-m", "pytest", "-xq", "tests/test_fuzz_readers.py", f"--hypothesis-seed={seed}"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"FUZZ_EXAMPLES": str(args.examples), "FUZZ_SEED": seed},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound)),
            capture_output=True,
            text=True,
        )
        rounds += 1
        if done.returncode:
            print(done.stdout[-20_000:], done.stderr[-5_000:])
            print(f"fuzz: round {rounds} failed, seed {seed}")
            return 1
    print(f"fuzz: {rounds} rounds of {args.examples} examples of each test, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
