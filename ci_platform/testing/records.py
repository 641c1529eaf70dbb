"""The rest of the store in memory: people, webhooks, descriptions and the audit log.

Part of `testing_store.InMemoryStore`; the same rules as there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from ci_platform.errors import Conflict, HookNotFound
from ci_platform.model import (
    AuditNote,
    Description,
    Json,
    RepositoryId,
    Role,
    User,
    UserId,
    WorkerId,
)
from ci_platform.ports import Clock
from ci_platform.ports.granting import Shelved
from ci_platform.ports.hooks import Delivery, Hook
from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.ports.identity import Token
from ci_platform.shell import Memo, MemoLimits
from ci_platform.store.audit import check_limit as check_audit_limit
from ci_platform.store.audit import columns as audit_columns
from ci_platform.store.codec import plain, plain_or_none
from ci_platform.store.descriptions import description_of
from ci_platform.store.hooks import DELIVERIES_KEPT_MS, check_delivery
from ci_platform.store.identity import TOUCH_MS
from ci_platform.store.ids import new_id
from ci_platform.store.packing import pack, unpack
from ci_platform.testing.tables import KeptMemo, Tables


class InMemoryIdentity:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._users: dict[UserId, tuple[User, str | None]] = {}
        self._roles: dict[UserId, dict[RepositoryId, Role]] = {}
        self._tokens: dict[str, Token] = {}
        self._digests: dict[str, str] = {}  # digest -> token id
        self._links: dict[str, tuple[str, int]] = {}  # purpose -> digest, expiry

    def create_user(self, name: str, password_hash: str | None, *, admin: bool) -> User:
        plain(name, "name")
        plain_or_none(password_hash, "password_hash")
        with self._lock:
            if self.user_by_name(name) is not None:
                raise Conflict(f"the name {name!r} is taken")
            now_ms = self._clock.now_ms()
            user = User(UserId(new_id("usr", now_ms)), name, admin, now_ms)
            self._users[user.id] = (user, password_hash)
        return user

    def user(self, user_id: UserId) -> User | None:
        found = self._users.get(user_id)
        return None if found is None else found[0]

    def user_by_name(self, name: str) -> tuple[User, str | None] | None:
        with self._lock:
            return next((found for found in self._users.values() if found[0].name == name), None)

    def users(self) -> list[User]:
        with self._lock:
            return sorted((user for user, _ in self._users.values()), key=lambda user: user.id)

    def set_password(self, user_id: UserId, password_hash: str) -> None:
        with self._lock:
            if user_id in self._users:
                self._users[user_id] = (self._users[user_id][0], password_hash)

    def set_role(self, user_id: UserId, repository_id: RepositoryId, role: Role | None) -> None:
        with self._lock:
            if role is not None and user_id not in self._users:
                raise Conflict(f"no user has the id {user_id}")
            roles = self._roles.setdefault(user_id, {})
            roles.pop(repository_id, None)
            if role is not None:
                roles[repository_id] = role

    def roles(self, user_id: UserId) -> Mapping[RepositoryId, Role]:
        with self._lock:
            return dict(self._roles.get(user_id, {}))

    def add_token(self, token: Token, digest: str) -> None:
        plain(token.name, "name")
        with self._lock:
            if token.id in self._tokens or digest in self._digests:
                raise Conflict(f"the token {token.id} exists")
            self._tokens[token.id] = token
            self._digests[digest] = token.id

    def token(self, digest: str) -> Token | None:
        with self._lock:
            return self._tokens.get(self._digests.get(digest, ""))

    def tokens(self, user_id: UserId | None = None) -> list[Token]:
        with self._lock:
            tokens = sorted(self._tokens.values(), key=lambda token: token.id)
        return [token for token in tokens if user_id in (None, token.user_id)]

    def revoke_token(self, token_id: str) -> None:
        with self._lock:
            self._tokens.pop(token_id, None)

    def touch_token(self, token_id: str, at_ms: int) -> None:
        with self._lock:
            token = self._tokens.get(token_id)
            used_ms = None if token is None else token.last_used_ms
            if token is not None and (used_ms is None or used_ms <= at_ms - TOUCH_MS):
                self._tokens[token_id] = replace(token, last_used_ms=at_ms)

    def put_link(self, digest: str, purpose: str, expires_ms: int) -> None:
        plain(purpose, "purpose")
        with self._lock:
            self._links[purpose] = (digest, expires_ms)

    def take_link(self, digest: str, now_ms: int) -> str | None:
        with self._lock:
            for purpose, (known, expires_ms) in list(self._links.items()):
                if known == digest:
                    del self._links[purpose]
                    return purpose if expires_ms > now_ms else None
        return None

    def forget_links(self, now_ms: int) -> int:
        with self._lock:
            old = [purpose for purpose, (_, ends_ms) in self._links.items() if ends_ms <= now_ms]
            for purpose in old:
                del self._links[purpose]
        return len(old)


@dataclass(slots=True)
class _Delivered:
    delivery: Delivery
    due_ms: int | None


class InMemoryHooks:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._hooks: dict[str, Hook] = {}
        self._deliveries: dict[tuple[str, str], _Delivered] = {}

    def add(self, hook: Hook) -> None:
        plain_or_none(hook.remote_url, "remote_url")
        with self._lock:
            if hook.id in self._hooks:
                raise Conflict(f"the webhook {hook.id} exists")
            self._hooks[hook.id] = hook

    def get(self, hook_id: str) -> Hook:
        with self._lock:
            found = self._hooks.get(hook_id)
        if found is None:
            raise HookNotFound(f"no webhook has the id {hook_id}")
        return found

    def of_repository(self, repository_id: RepositoryId) -> list[Hook]:
        with self._lock:
            hooks = [hook for hook in self._hooks.values() if hook.repository_id == repository_id]
        return sorted(hooks, key=lambda hook: (hook.created_ms, hook.id))

    def remove(self, hook_id: str) -> None:
        with self._lock:
            self._hooks.pop(hook_id, None)
            for noted in [noted for noted in self._deliveries if noted[0] == hook_id]:
                del self._deliveries[noted]

    def first_delivery(self, hook_id: str, delivery_id: str, at_ms: int) -> bool:
        return self._note(Delivery(hook_id, delivery_id, "", b"", at_ms), None)

    def enqueue(self, delivery: Delivery) -> bool:
        return self._note(delivery, delivery.received_ms)

    def _note(self, delivery: Delivery, due_ms: int | None) -> bool:
        check_delivery(delivery)
        self.get(delivery.hook_id)
        with self._lock:
            noted = (delivery.hook_id, delivery.id)
            if noted in self._deliveries:
                return False
            self._deliveries[noted] = _Delivered(delivery, due_ms)
            return True

    def pending(self, now_ms: int, *, limit: int = 100) -> list[Delivery]:
        with self._lock:
            due = [
                (one.due_ms, one.delivery.received_ms, one.delivery.id, one.delivery)
                for one in self._deliveries.values()
                if one.due_ms is not None and one.due_ms <= now_ms
            ]
        return [delivery for *_, delivery in sorted(due, key=lambda one: one[:3])][:limit]

    def defer(self, hook_id: str, delivery_id: str, until_ms: int) -> None:
        with self._lock:
            found = self._deliveries.get((hook_id, delivery_id))
            if found is not None and found.due_ms is not None:
                found.due_ms = until_ms
                found.delivery = replace(found.delivery, tries=found.delivery.tries + 1)

    def finish(self, hook_id: str, delivery_id: str, outcome: str) -> None:
        plain(outcome, "outcome")
        with self._lock:
            found = self._deliveries.get((hook_id, delivery_id))
            if found is not None:
                found.due_ms = None
                found.delivery = replace(found.delivery, body=b"")

    def forget(self, now_ms: int, *, limit: int = 500) -> int:
        before_ms = now_ms - DELIVERIES_KEPT_MS
        with self._lock:
            old = [
                noted
                for noted, one in self._deliveries.items()
                if one.due_ms is None and one.delivery.received_ms < before_ms
            ][:limit]
            for noted in old:
                del self._deliveries[noted]
        return len(old)


class InMemoryDescriptions:
    def __init__(self) -> None:
        self._found: dict[str, bytes] = {}

    def get(self, digest: str) -> Description | None:
        found = self._found.get(digest)
        return None if found is None else description_of(unpack(found))

    def put(self, digest: str, description: Description) -> None:
        self._found[digest] = pack(asdict(description), "description")


class InMemoryMemos:
    """Rows vanish with their runs, which are looked up at each question."""

    def __init__(self, tables: Tables, limits: MemoLimits) -> None:
        self._tables = tables
        self._limits = limits

    def find(self, repository_id: RepositoryId, scopes: Sequence[str], key: str) -> Memo | None:
        for scope in scopes:
            kept = self._tables.memos.get((repository_id, scope, key))
            if kept is not None and kept.memo.run_id in self._tables.runs:
                return kept.memo
        return None

    def put(self, repository_id: RepositoryId, scope: str, key: str, memo: Memo) -> None:
        for name, value in (("scope", scope), ("key", key), ("step", memo.step)):
            plain(value, name)
        result = unpack(pack(dict(memo.result), "result"))
        tables = self._tables
        if memo.run_id in tables.runs:
            number = tables.runs[memo.run_id].number
            kept = replace(memo, number=number, result=result, scope=scope)
            tables.memos[repository_id, scope, key] = KeptMemo(kept, tables.clock.now_ms())
            self._evict(repository_id)

    def rehome(self, repository_id: RepositoryId, key: str, found: Memo, taken: Memo) -> bool:
        kept = self._tables.memos.get((repository_id, found.scope, key))
        if kept is None or kept.memo.run_id != found.run_id or kept.memo.step != found.step:
            return False
        if taken.run_id not in self._tables.runs:
            return False
        self.put(repository_id, found.scope, key, taken)
        return True

    def _evict(self, repository_id: RepositoryId) -> None:
        own = [item for item in self._tables.memos.items() if item[0][0] == repository_id]
        size = 0
        newest = sorted(own, key=lambda item: -item[1].used_ms)
        for count, (place, kept) in enumerate(newest, 1):
            size += kept.memo.size
            if count > 1 and (count > self._limits.count or size > self._limits.size):
                del self._tables.memos[place]


class InMemoryAudit:
    def __init__(self) -> None:
        self._records: list[Mapping[str, Json]] = []

    def record(
        self, at_ms: int, actor: str, action: str, subject: str, detail: Mapping[str, Json]
    ) -> None:
        self.write(AuditNote(at_ms, actor, action, subject, detail))

    def write(self, note: AuditNote) -> None:
        """With the change that it tells of."""
        row = audit_columns(note)
        self._records.append({**row, "detail": unpack(pack(dict(note.detail), "detail"))})

    def list(self, *, limit: int = 100) -> list[Mapping[str, Json]]:
        check_audit_limit(limit)
        return self._records[::-1][:limit]


class InMemoryWorkers:
    """`held` tells how many runs and commands a worker has leased."""

    def __init__(self, held: Callable[[WorkerId], tuple[int, int]]) -> None:
        self._held = held
        self._lock = threading.RLock()
        self._records: dict[WorkerId, WorkerRecord] = {}
        self._asked: set[WorkerId] = set()  # to drain

    def beat(self, record: WorkerRecord) -> bool:
        with self._lock:
            self._records[record.id] = record
            return record.id in self._asked

    def drain(self, worker: WorkerId) -> bool:
        with self._lock:
            if worker in self._records:
                self._asked.add(worker)
            return worker in self._records

    def gone(self, worker: WorkerId) -> None:
        with self._lock:
            self._records.pop(worker, None)
            self._asked.discard(worker)

    def list(self) -> list[WorkerRecord]:
        with self._lock:
            records = sorted(self._records.values(), key=lambda record: record.id)
        held = [self._held(record.id) for record in records]
        return [
            replace(
                record,
                runs=runs,
                operations=operations,
                draining=record.draining or record.id in self._asked,
            )
            for record, (runs, operations) in zip(records, held, strict=True)
        ]

    def forget(self, before_ms: int) -> int:
        with self._lock:
            dead = [record.id for record in self._records.values() if record.seen_ms < before_ms]
            for worker in dead:
                del self._records[worker]
        return len(dead)


class InMemoryDuties:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._next_ms: dict[str, int] = {}

    def take(self, name: str, *, every_ms: int) -> bool:
        now_ms = self._clock.now_ms()
        with self._lock:
            if self._next_ms.get(name, now_ms) > now_ms:
                return False
            self._next_ms[name] = now_ms + every_ms
        return True


class InMemoryShelves:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._found: dict[tuple[RepositoryId, str], Shelved] = {}

    def get(self, repository_id: RepositoryId, name: str) -> Shelved | None:
        return self._found.get((repository_id, name))

    def move(
        self, repository_id: RepositoryId, name: str, *, version: int, to: str
    ) -> Shelved | None:
        plain(to, "to")
        with self._lock:
            now = self._found.get((repository_id, name))
            if (0 if now is None else now.version) != version:
                return None
            self._found[repository_id, name] = Shelved(version + 1, to)
            return self._found[repository_id, name]

    def remove(self, repository_id: RepositoryId) -> list[str]:
        with self._lock:
            gone = [key for key in self._found if key[0] == repository_id]
            return [self._found.pop(key).object for key in gone]


class InMemoryNetworks:
    def __init__(self) -> None:
        self._found: dict[RepositoryId, Sequence[str]] = {}

    def get(self, repository_id: RepositoryId) -> Sequence[str] | None:
        return self._found.get(repository_id)

    def put(self, repository_id: RepositoryId, hosts: Sequence[str]) -> None:
        self._found[repository_id] = tuple(hosts)

    def remove(self, repository_id: RepositoryId) -> bool:
        return self._found.pop(repository_id, None) is not None
