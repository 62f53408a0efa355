from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.files import plan_of, sweep_file
from tests.sweep.stores import Served
from unlearnbench.errors import InUseError, StoreError
from unlearnbench.sweep import lease as leases
from unlearnbench.sweep.display import status
from unlearnbench.sweep.lease import KEY, Lease, has_ended, here
from unlearnbench.sweep.record import opened
from unlearnbench.sweep.store import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "SILENCE", 1.0)


def elsewhere(store: Store, **changes: Any) -> None:
    """A holder on another machine, which does nothing more."""
    told = {**here(), "machine": "another", "host": "node\x1b7", "epoch": 4, **changes}
    store.write(KEY, json.dumps(told).encode("ascii"))


def test_one_sweep_leads_and_the_next_one_says_who(s3: Served, tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path, output=s3.url()))
    other = plan_of(sweep_file(tmp_path, output=plan.home.where))
    said = rf"is being written by process {os.getpid()} on .*; wait for it to end, or use another"
    with opened(plan, {}) as record:
        record.event("evaluate-target", "running", attempt=1)
        with pytest.raises(InUseError, match=said), opened(other, {}):
            pass
        head, running = status(plan.home.where)
        assert head.startswith("0 of 6 jobs done, 1 running, 5 waiting; ")
        assert running.startswith("running: evaluate-target for ")
    assert "not running now" in status(plan.home.where)[0]
    with opened(other, {}):  # at once
        pass


def test_who_is_silent_is_followed_and_cannot_go_on(
    s3: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(s3.url())
    first, second = Lease(store), Lease(store)
    first.take()
    first._ends.set()  # it hangs
    first._thread.join()
    found = json.loads((store.read(KEY) or (b"", {}))[0])
    store.write(KEY, json.dumps({**found, "machine": "another"}).encode("ascii"))
    first._tag = dict((store.read(KEY) or (b"", {}))[1])
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        second.take()
    assert time.monotonic() - began > 1
    assert "which has been silent for 1 s: taken over" in caplog.text
    assert (first.epoch, second.epoch) == (1, 2)
    with pytest.raises(InUseError, match="this sweep was silent for too long: .* is being written"):
        first.check()
    first.release()
    second.check()
    second.release()
    assert json.loads((store.read(KEY) or (b"", {}))[0])["released"]


def test_a_sign_that_comes_late_is_no_other_leader(s3: Served) -> None:
    """A request that failed as far as its sender knows may still be done by the store."""
    store = Store(s3.url())
    lease = Lease(store)
    lease.take()
    lease._ends.set()
    lease._thread.join()
    late, lease._tag = lease._tag, store.replace(KEY, lease._content(), lease._tag)
    lease._tag = late
    lease._beat()
    lease.check()
    lease.release()
    assert json.loads((store.read(KEY) or (b"", {}))[0])["released"]


def test_who_lives_on_another_machine_keeps_it(s3: Served) -> None:
    store = Store(s3.url())
    lease = Lease(store)
    lease.take()
    told = {**lease._facts, "machine": "another"}
    lease._facts = told
    time.sleep(0.3)  # it has said so
    with pytest.raises(InUseError, match="is being written by process"):
        Lease(store).take()
    lease.release()


def test_a_process_of_this_machine_that_ended_is_followed_at_once(s3: Served) -> None:
    store = Store(s3.url())
    elsewhere(store, machine=here()["machine"], began=1.0)
    lease = Lease(store)
    lease.take()
    assert lease.epoch == 5
    lease.release()


def test_which_holders_have_ended() -> None:
    own = here()
    assert not has_ended(own)
    assert has_ended({**own, "released": True})
    assert has_ended({**own, "pid": 2**22 + 1})
    assert not has_ended({**own, "pid": 2**22 + 1, "machine": "another"})
    assert not has_ended({**own, "pid": 2**22 + 1, "machine": ""})
    assert not has_ended({**own, "pid": "x"})


def test_a_lease_that_was_removed_does_not_begin_again_at_one(s3: Served, tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path, output=s3.url()))
    for _ in range(2):
        with opened(plan, {}) as record:
            record.event("evaluate-target", "failed", error="why")
    store = Store(plan.home.where)
    before = store.names("sweep/events/")
    store.remove([KEY])
    with opened(plan, {}):
        pass
    assert store.names("sweep/events/").items() > before.items()


def test_a_lease_that_is_damaged_is_said(s3: Served) -> None:
    store = Store(s3.url())
    for content in (b"[]", b"{", b"\xff", b"{}", b'{"epoch": "1", "released": true}'):
        store.write(KEY, content)
        with pytest.raises(StoreError, match=r"sweep/leader\.json is damaged; remove it"):
            Lease(store).take()
