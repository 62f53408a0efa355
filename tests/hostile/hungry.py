"""Open every case that would take memory without end, under a limit; print what was said as JSON.

python -m tests.hostile.hungry TINY_CHECKPOINT EMPTY_FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

from tests.hostile.corpus import CASES, Case, adapter
from tests.hostile.test_checkpoints import lay_out, use
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import UnlearnbenchError

SPARE = 3 * 2**30


def said_of(place: tuple[str, LoadOptions]) -> str:
    """What opening it ends in."""
    try:
        use(*place)
    except UnlearnbenchError as error:
        return str(error)
    return "it was opened"


def main(tiny: Path, root: Path) -> None:
    use(str(tiny), LoadOptions())  # imports what there is to import
    path, _ = lay_out(Case("adapter", adapter(), ""), tiny, root)
    use(path, LoadOptions(base=str(tiny)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    cases = {name: found for name, found in CASES.items() if found.hungry}
    places = {
        name: lay_out(found, tiny, Path(tempfile.mkdtemp(dir=root)))
        for name, found in cases.items()
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {name: said_of(place) for name, place in places.items()}
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"said": said, "grown_mib": (after - before) / 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
