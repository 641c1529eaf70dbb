"""Links between runs and their children: the same on every store."""

from __future__ import annotations

from dataclasses import replace

from ci_platform.effects import ReleaseChildren
from ci_platform.family import Kin
from ci_platform.model import RunId
from ci_platform.ports import Store
from tests.contract.store_values import append, claimed, created, end, new_run


def child(store: Store, name: str, parent: str = "run_one", *, waits: bool = True) -> RunId:
    kin = Kin(parent, f"run:{name}", waits, 1)
    return store.runs.create([replace(new_run(name), kin=kin)])[0].id


def settle(store: Store) -> list[str]:
    links = store.family.due()
    for link in links:
        store.family.settled(link)
    return [link.child_id for link in links]


def test_a_child_and_its_parent_know_each_other(store: Store) -> None:
    parent = created(store)
    first, second = child(store, "a"), child(store, "b", waits=False)
    assert [link.child_id for link in store.family.children(parent.id)] == [first, second]
    link = store.family.parent(second)
    assert link is not None
    assert link.kin == Kin(parent.id, "run:b", False, 1)
    assert store.family.parent(parent.id) is None


def test_a_link_is_due_from_the_birth_of_the_child_on(store: Store) -> None:
    created(store)
    first = child(store, "a")
    assert settle(store) == [first]
    assert settle(store) == []


def test_the_end_of_either_makes_their_link_due(store: Store) -> None:
    created(store)
    parent = claimed(store)
    first, second = child(store, "a"), child(store, "b")
    settle(store)
    end(store, claimed(store))
    assert settle(store) == [first]
    end(store, parent)
    assert settle(store) == [first, second]


def test_a_parent_that_lets_go_of_its_children_makes_their_links_due(store: Store) -> None:
    created(store)
    parent = claimed(store)
    first = child(store, "a")
    settle(store)
    append(store, parent, effects=[ReleaseChildren()])
    assert settle(store) == [first]


def test_what_happens_while_a_link_is_looked_at_stays_due(store: Store) -> None:
    created(store)
    parent = claimed(store)
    child(store, "a")
    (link,) = store.family.due()
    end(store, parent)
    store.family.settled(link)
    assert len(store.family.due()) == 1


def test_what_happens_while_two_look_at_a_link_stays_due(store: Store) -> None:
    """Both have seen the birth; the end comes between the words of the one and of the other."""
    created(store)
    parent = claimed(store)
    child(store, "a")
    (one,) = store.family.due()
    (other,) = store.family.due()
    store.family.settled(one)
    end(store, parent)
    store.family.settled(other)
    assert len(store.family.due()) == 1
    assert len(settle(store)) == 1
    assert store.family.due() == []


def test_a_link_goes_with_either_run(store: Store) -> None:
    created(store)
    parent = claimed(store)
    first = child(store, "a")
    end(store, parent)
    store.runs.delete(parent.id)
    assert store.family.parent(first) is None
    assert store.family.due() == []


def test_a_child_of_a_run_that_is_gone_is_a_run_like_any_other(store: Store) -> None:
    first = child(store, "a", parent="run_gone")
    assert store.runs.get(first).id == first
    assert store.family.parent(first) is None
