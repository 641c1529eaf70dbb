"""The JSON of a journal: its entries, and a page of them."""

from __future__ import annotations

from ci_platform.api.answers import Answer, iso
from ci_platform.model import Entry, Json, StepKey
from ci_platform.queries import EntryPage


class KeyAnswer(Answer):
    kind: str
    name: str
    occurrence: int

    @classmethod
    def of(cls, key: StepKey | None) -> KeyAnswer | None:
        if key is None:
            return None
        return cls(kind=key.kind, name=key.name, occurrence=key.occurrence)


class EntryAnswer(Answer):
    seq: int
    kind: str
    at: str
    at_ms: int
    key: KeyAnswer | None
    attempt: int | None
    data: dict[str, Json]

    @classmethod
    def of(cls, entry: Entry) -> EntryAnswer:
        return cls(
            seq=entry.seq,
            kind=entry.kind,
            at=iso(entry.at_ms),
            at_ms=entry.at_ms,
            key=KeyAnswer.of(entry.key),
            attempt=entry.attempt,
            data=dict(entry.data),
        )


class Journal(Answer):
    entries: list[EntryAnswer]
    cursor: int  # `after` of the next page: what was looked at, also what was not asked for
    ended: bool  # none follows, now or later

    @classmethod
    def of(cls, page: EntryPage) -> Journal:
        told = [EntryAnswer.of(one) for one in page.entries]
        return cls(entries=told, cursor=page.cursor, ended=page.ended)
