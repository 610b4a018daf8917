"""Write down the exact versions of an environment in which all tests have passed.

python tools/lock.py     writes requirements/tested-py311.txt under Python 3.11
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Exact versions of the last run in which all tests passed under Python {python}, on Linux x86-64.
# Written by tools/lock.py; used by `make install LOCKED=1`.
"""
OUTSIDE = ("pip", "setuptools", "wheel", "sslpdl_nb")  # of the environment, not of the project


def locked(
    lines: list,  # NAME==VERSION, as `pip list --format=freeze` prints them
) -> list:  # the same, sorted, without what is not a requirement of the project
    "Lines of a requirements file."
    kept = []
    for line in lines:
        name, _, version = line.strip().partition("==")
        if version and name.lower().replace("-", "_") not in OUTSIDE:
            kept.append(f"{name}=={version.split('+')[0]}")  # +cu130 is not on every index
    return sorted(kept, key=str.lower)


def main(root: Path = ROOT) -> int:
    command = [sys.executable, "-m", "pip", "list", "--format=freeze"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    major, minor = sys.version_info[:2]
    path = root / "requirements" / f"tested-py{major}{minor}.txt"
    path.parent.mkdir(exist_ok=True)
    head = HEAD.format(python=f"{major}.{minor}")
    path.write_text(head + "\n".join(locked(done.stdout.splitlines())) + "\n", encoding="utf-8")
    print(path.relative_to(root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
