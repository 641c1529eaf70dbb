"""What steps of a storm do: the `tests.model.trace` of the repository that is stormed.

A step returns a digest of all that its code had been given until then, and a number nobody can
guess: had a step executed twice and its code seen one result and the journal kept the other, then
some digest would not be that of the journal.
"""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

from pipelines import NonRetryable

DELAY = "200 ms"
WORK = 200_000  # loops of a body, so that it can be hit


def digest(known: Any) -> str:
    """Of what was seen; which of several errors was the quickest does not count."""
    if isinstance(known, list):
        known = [[key, None if key == "caught" else value] for key, value in known]
    return str(zlib.crc32(json.dumps(known, sort_keys=True).encode()))


def executed(run: str, key: str, attempt: int, known: Any, fails: int | None) -> Any:
    sum(range(WORK))
    if fails is not None and attempt <= fails:
        if fails > 1:
            raise NonRetryable(f"{key} fails, as planned")
        raise RuntimeError(f"attempt {attempt} of {key} fails, as planned")
    return {"seen": digest(known), "nonce": random.getrandbits(32)}


def script(key: str, known: Any, fails: int) -> str:
    return (
        f"sleep 0.2; [ $CI_STEP_ATTEMPT -gt {fails} ] || exit 3; "
        f"echo seen={digest(known)} >> $CI_OUTPUT; echo nonce=$(date +%N)$$ >> $CI_OUTPUT"
    )
