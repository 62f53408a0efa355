"""Requests to forget that come one after another: each unlearned from the last one's checkpoint
(sustainability, MUSE's sixth criterion, arXiv 2407.06460).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, Training
from unlearnbench.errors import OptionError, one_line
from unlearnbench.methods import find_method
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.training.corpus import TextRole, load_corpus
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.output import write_file
from unlearnbench.util.process import is_main

ASKED = "requests.json"


def unlearn_each(
    job: Job, method: str, numbers: Mapping[str, object], requests: Sequence[str]
) -> Iterator[tuple[Path, Training]]:
    """Unlearn each request (a file, or ``task:NAME``) from where the one before it ended; yields
    the folder and record of each that is trained now. ``job.out`` gets ``request-1``, ``request-2``
    and so on, each an ordinary checkpoint. With ``job.resume`` finished ones stay as they are.

    Raises: as ``unlearn``; OptionError too where the folder is of other requests or options.
    """
    if job.forget:
        raise OptionError("--requests and --forget both say what is to go; give one of them")
    if len(requests) < 2:
        raise OptionError("--requests takes two or more, with commas between; for one: --forget")
    if job.options.keep_adapter:
        raise OptionError("--requests goes on from merged weights; drop --keep-adapter")
    places = [job.out / f"request-{i + 1}" for i in range(len(requests))]
    _claim(job, method, numbers, requests)
    made, model, load = False, job.model, job.load
    for name, place in zip(requests, places, strict=True):
        if not (job.resume and (place / FILE).is_file()):
            step = replace(job, model=model, out=place, forget=(name,), load=load)
            yield place, unlearn(step, method, numbers)
            made = True
        # What says where the target is, and how it is trusted, is not about our own checkpoints.
        model, load = str(place), LoadOptions()
    if not made:
        raise OptionError(f"{job.out} holds all of these requests, finished; use another --out")


def _claim(job: Job, method: str, numbers: Mapping[str, object], requests: Sequence[str]) -> None:
    """Read every request now, not after hours of the first, and show that what the folder holds
    is of the same ones.
    """
    data = [load_corpus((name,), "forget", job.corpus)[1][0].sha256 for name in requests]
    sets: dict[TextRole, tuple[str, ...]] = {"retain": job.retain, "auxiliary": job.auxiliary}
    sets |= {"unseen": job.unseen}
    others = {role: load_corpus(t, role, job.corpus)[1] for role, t in sets.items() if t}
    beside = {name: getattr(job, name) for name in ("alternative", "spans", "anchors")}
    files = {f"{name} file": Path(given) for name, given in beside.items() if given}
    here = Fingerprint.of(
        {
            **{role: ", ".join(part.sha256 for part in parts) for role, parts in others.items()},
            **beside,
            **{n: files_sha256([path]) for n, path in files.items() if path.is_file()},
            "base": job.base,
            "corpus": job.corpus.model_dump(mode="json"),
            "select": None if job.select is None else job.select.model_dump(mode="json"),
            "model": job.model,
            "method": method,
            "knobs": json.dumps(find_method(method).with_options(numbers).numbers, sort_keys=True),
            "options": json.dumps(job.options.model_dump(mode="json"), sort_keys=True),
            **{f"request {i + 1}": sha256 for i, sha256 in enumerate(data)},
        }
    )
    path = job.out / ASKED
    if not is_main():
        return
    if path.is_file():
        try:
            earlier = json.loads(path.read_bytes())
            there = Fingerprint.of(earlier if isinstance(earlier, dict) else {})
        except (OSError, ValueError) as error:
            raise OptionError(
                f"{path} is damaged ({one_line(error, 80)}); remove {job.out}"
            ) from None
        if not job.resume:
            raise OptionError(f"{job.out} holds such requests; add --resume to go on, or remove it")
        if there != here:
            raise OptionError(
                f"{job.out} holds requests with others: {'; '.join(differences(there, here))}; use "
                "the same or another --out"
            )
        return
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise OptionError(f"{job.out} is in the way and holds no requests; use another --out")
    job.out.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(dict(here.facts), sort_keys=True, indent=1).encode())
