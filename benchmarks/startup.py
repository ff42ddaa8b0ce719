"""What the command line costs before it does anything: `python -m benchmarks.startup --rival DIR`.

Processor time (user and system) of help and of refused options, here and in another checkout, in turns, each in a fresh
process of the same Python. The goal is for help of the program, help of `methods`, and refusals.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import measuring

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.35
"""Most processor time, as a share of the rival's."""
COMMANDS: dict[str, tuple[int, list[str]]] = {
    "--help": (0, ["--help"]),
    "methods --help": (0, ["methods", "--help"]),
    "heal --help": (0, ["heal", "--help"]),
    "a wrong option": (2, ["evaluate", "default", "--colour"]),
    "a missing argument": (2, ["build"]),
}
"""By name: the exit code, and what follows `python -m surgery`."""


def processor_seconds(checkout: Path, code: int, arguments: list[str]) -> float:
    """User and system time of one command.

    Raises:
        RuntimeError: it ended otherwise than with that code.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "surgery", *arguments]
    done = subprocess.run(command, cwd=checkout, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-300:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def benchmark(rival: Path, rounds: int) -> dict[str, Any]:
    """Everything measured, as JSON values: medians over the rounds, after one round that is thrown away."""
    rows: list[dict[str, Any]] = []
    for name, command in COMMANDS.items():
        pairs = [(processor_seconds(ROOT, *command), processor_seconds(rival, *command)) for _ in range(rounds + 1)][1:]
        here, there = (measuring.median(seconds) for seconds in zip(*pairs, strict=True))
        rows.append({"command": name, "here s": here, "rival s": there, "ratio": here / there})
    met = all(row["ratio"] <= GOAL for row in rows)
    return {"machine": measuring.machine(), "rounds": rounds, "commands": rows, "goal": GOAL, "met": met}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--rival", type=Path, required=True, help="another checkout, such as the commit before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/startup.json if absent")
    options = parser.parse_args()
    result = benchmark(options.rival, options.rounds)
    measuring.table(result["commands"], f"Processor time of a command, median of {result['rounds']}")
    print(f"goal {GOAL}: {'met' if result['met'] else 'MISSED'}")
    measuring.write("startup", result, options.out)
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
