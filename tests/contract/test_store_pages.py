"""Pages of runs that no index finds: each looks at so many, and the cursor leads on."""

from __future__ import annotations

import pytest

from ci_platform.model import RepositoryId
from ci_platform.ports import RunFilter
from ci_platform.store import listing
from ci_platform.store.runs import LIVE_STATES
from tests.contract.conftest import OpenStore
from tests.contract.store_values import REPO, created, end, new_run


def test_a_page_of_few_leads_on(open_sql_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LOOKED_MAX", 3)
    store = open_sql_store()
    for number in range(10):
        pipeline = "rare" if number in (1, 2) else "CI"
        store.runs.create([new_run(f"n{number}", pipeline=pipeline)])
    for ids in ([RepositoryId("repo_a")], None):
        found: list[str] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            which = RunFilter(repository_ids=ids, pipeline="rare")
            page = store.runs.list(which, cursor=cursor, limit=1)
            found += [run.id for run in page.runs]
            cursor, pages = page.cursor, pages + 1
        assert found == ["run_n2", "run_n1"]
        assert pages in (4, 5)


def test_old_live_runs_are_found_behind_many(
    open_sql_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LOOKED_MAX", 3)
    store = open_sql_store()
    for number in range(10):
        run = created(store, f"n{number}", repository=REPO)
        if number:
            end(store, run)
    which = RunFilter(repository_ids=[REPO], states=LIVE_STATES)
    assert [run.id for run in store.runs.list(which, limit=1).runs] == ["run_n0"]
