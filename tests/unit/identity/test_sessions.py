from __future__ import annotations

from dataclasses import dataclass

import pytest

from ci_platform.errors import Forbidden, InvalidRequest, TooMany
from ci_platform.identity.passwords import (
    TRACKED_MAX,
    TRIES_WINDOW_MS,
    Throttle,
    hash_password,
    verify_password,
)
from ci_platform.identity.sessions import CSRF_MS, SESSION_MS, Sessions
from ci_platform.identity.tokens import check_scopes, digest, new_secret
from ci_platform.model import UserId

ADA = UserId("usr_ada")


@dataclass
class FakeClock:
    at_ms: int = 1_000_000

    def now_ms(self) -> int:
        return self.at_ms


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sessions(clock: FakeClock) -> Sessions:
    return Sessions(b"a secret of 16 bytes or more", clock)


def test_a_cookie_is_read_back_until_it_is_over(sessions: Sessions, clock: FakeClock) -> None:
    session, cookie = sessions.issue(ADA)
    assert sessions.read(cookie) == session
    clock.at_ms += SESSION_MS - 1
    assert sessions.read(cookie) is not None
    clock.at_ms += 1
    assert sessions.read(cookie) is None


def test_a_cookie_of_another_deployment_or_hand_is_nothing(
    sessions: Sessions, clock: FakeClock
) -> None:
    session, cookie = sessions.issue(ADA)
    others = Sessions(b"another secret of the same size", clock)
    token = sessions.csrf_token(session)
    for forged in (None, "", "x", cookie[:-1], cookie + "x", token, "x" * 5000, "\udcff"):
        assert sessions.read(forged) is None
    assert others.read(cookie) is None


def test_a_short_secret_is_refused(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Sessions(b"short", clock)


def test_a_form_is_bound_to_its_session_and_time(sessions: Sessions, clock: FakeClock) -> None:
    session, cookie = sessions.issue(ADA)
    other, _ = sessions.issue(ADA)
    token = sessions.csrf_token(session)
    sessions.check_csrf(session, token)
    for whose, sent in [
        (other, token),
        (None, token),
        (session, None),
        (session, ""),
        (session, "x"),
        (session, cookie),
        (session, token + "x"),
    ]:
        with pytest.raises(Forbidden, match="reload"):
            sessions.check_csrf(whose, sent)
    clock.at_ms += CSRF_MS
    with pytest.raises(Forbidden):
        sessions.check_csrf(session, token)


def test_two_sessions_of_a_user_differ(sessions: Sessions) -> None:
    assert sessions.issue(ADA)[0].id != sessions.issue(ADA)[0].id


def test_a_password_is_kept_as_a_hash_that_knows_it() -> None:
    kept = hash_password("correct horse")
    assert kept.startswith("$argon2id$") and kept != hash_password("correct horse")
    assert verify_password("correct horse", kept)
    assert not verify_password("correct horsf", kept)
    assert not verify_password("correct horse", None)
    assert not verify_password("correct horse", "not a hash")
    assert not verify_password("x" * 100_000, kept)
    assert not verify_password("\ud800", kept)


@pytest.mark.parametrize("password", ["", "1234567", "x" * 257])
def test_a_password_has_8_to_256_characters(password: str) -> None:
    with pytest.raises(InvalidRequest, match="8 to 256"):
        hash_password(password)


def test_tries_are_forgotten_after_their_window(clock: FakeClock) -> None:
    throttle = Throttle(clock, tries_max=2)
    throttle.begin("name:a")
    clock.at_ms += TRIES_WINDOW_MS // 2
    throttle.begin("name:a")
    with pytest.raises(TooMany):
        throttle.begin("name:b", "name:a")
    clock.at_ms += TRIES_WINDOW_MS // 2
    throttle.begin("name:a")


def test_a_right_password_does_not_count(clock: FakeClock) -> None:
    throttle = Throttle(clock, tries_max=2)
    for _ in range(10):
        throttle.begin("name:a", "address:1")
        throttle.passed("name:a", "address:1")
    throttle.begin("name:b", "address:1")
    throttle.begin("name:c", "address:1")
    with pytest.raises(TooMany):
        throttle.begin("name:a", "address:1")


def test_tries_at_the_same_time_are_counted_before_they_end(clock: FakeClock) -> None:
    throttle = Throttle(clock, tries_max=2)
    throttle.begin("name:a")
    throttle.begin("name:a")
    with pytest.raises(TooMany):
        throttle.begin("name:a")


def test_the_throttle_remembers_a_bounded_number_of_names(clock: FakeClock) -> None:
    throttle = Throttle(clock, tries_max=1)
    for number in range(TRACKED_MAX + 1):
        throttle.begin(f"name:{number}")
    with pytest.raises(TooMany):
        throttle.begin("name:1")
    throttle.begin("name:0")  # the oldest is forgotten


def test_secrets_differ_and_are_kept_as_sha_256() -> None:
    secret = new_secret()
    assert secret.startswith("slu_") and len(secret) > 40 and secret != new_secret()
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(secret) != digest(secret + " ")


def test_scopes_are_a_closed_set() -> None:
    assert check_scopes(["run", "run", "repo:read"]) == {"run", "repo:read"}
    for scopes in ([], ["run", "root"], ["RUN"]):
        with pytest.raises(InvalidRequest, match="repo:read, repo:write, run, admin"):
            check_scopes(scopes)
