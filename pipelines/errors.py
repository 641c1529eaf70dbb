"""What an author may raise or catch, and how exceptions travel through the journal.

    Exception
    ├── NonRetryable        raised by authors: this attempt was the last
    │   └── NonRetryableDelayError  retries.delay is a function, and it is broken
    ├── StepTimeout         an attempt took longer than its timeout; a TimeoutError
    ├── StepFailed          a step ended badly; `type` and `message` say how
    │   ├── CommandFailed       a command exited non-zero, or was ended
    │   ├── Rejected            a person said no
    │   └── WaitTimeout         an event or a decision did not come in time
    ├── CapabilityError     self.env did not do what was asked; `type` and the message say why
    ├── RunCancelled        what a rollback handler is told when somebody cancelled the run
    ├── RollbackFailed      a step began with a handler that the code does not make any more
    └── NotGranted          the run does not have this capability

An exception becomes data (`describe`) when a body or a run fails, and an exception again (`revive`)
when its entry is delivered: live and in replay alike, so that `except` clauses see the same.
Nothing the platform itself needs is ever raised into author code.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import traceback
from collections.abc import Iterator, Mapping

from pipelines.wire import Json

MESSAGE_MAX = 8_192  # characters of an error's message
TRACEBACK_MAX = 16_384  # characters of a traceback; its end is kept
_PLATFORM = (os.path.dirname(__file__) + "/", os.path.dirname(traceback.__file__) + "/", "<")


class NonRetryable(Exception):
    """Raised in a step's body: fail the step now, whatever retries are left."""


class NonRetryableDelayError(NonRetryable):
    """The function given as retries.delay failed, took too long, or answered no duration."""


class StepTimeout(TimeoutError):
    """An attempt at a step's body took longer than the step's timeout."""


class RunCancelled(Exception):
    """Somebody cancelled the run: the `error` that its rollback handlers get. Never raised."""


class RollbackFailed(Exception):
    """A step cannot be undone, since its handler is not there."""


class NotGranted(Exception):
    """The run was not given this capability."""


class CapabilityError(Exception):
    """What `self.env` was asked for cannot be done. `type` is a word such as SqlError, TooLarge."""

    def __init__(self, message: str = "", *, type: str = "CapabilityError") -> None:
        super().__init__(message)
        self.type = type


class StepFailed(Exception):
    """A step failed for good. `type` and `message` are those of its last attempt; `run_id` is the
    run that step.start waited for."""

    def __init__(
        self, message: str = "", *, type: str = "StepFailed", run_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.run_id = run_id


class CommandFailed(StepFailed):
    """A command exited non-zero or was ended by the platform (`ended` says why)."""

    def __init__(
        self,
        message: str = "",
        *,
        exit_code: int | None = None,
        output_tail: str = "",
        ended: str | None = None,
    ) -> None:
        super().__init__(message, type="CommandFailed")
        self.exit_code = exit_code
        self.output_tail = output_tail
        self.ended = ended


class Rejected(StepFailed):
    """A person rejected an approval: `user` with `comment`."""

    def __init__(self, message: str = "", *, user: str = "", comment: str = "") -> None:
        super().__init__(message, type="Rejected")
        self.user = user
        self.comment = comment


class WaitTimeout(StepFailed):
    """What was waited for did not come in time."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message, type="WaitTimeout")


def describe(error: BaseException, *, data: Mapping[str, Json] | None = None) -> dict[str, Json]:
    """Turn an exception into data: type, message, and the traceback of the author's frames."""
    shown = _only_leaf(error)
    cls = type(shown)
    found: dict[str, Json] = dict(data or {})
    if cls.__module__ != "builtins" and not cls.__module__.startswith("pipelines."):
        found["class"] = f"{cls.__module__}:{cls.__qualname__}"
    return {
        "type": clean(cls.__name__)[:256],
        "message": clean(message_of(shown))[:MESSAGE_MAX],
        "traceback": traceback_of(error),
        "data": found,
    }


def _only_leaf(error: BaseException) -> BaseException:
    """What a TaskGroup wraps, when it wraps one error only: that is what people look for."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def message_of(error: BaseException) -> str:
    """`str(error)`, even if its class is broken."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called; return from run(), or raise an exception"
    try:
        text = str(error)
    except Exception as broken:  # the author's own __str__ may do anything
        return f"<its __str__ raised {type(broken).__name__}>"
    if isinstance(error, BaseExceptionGroup):
        inner = "; ".join(f"{type(e).__name__}: {message_of(e)}" for e in error.exceptions[:10])
        return f"{text}: {inner}"
    return text


def traceback_of(error: BaseException) -> str:
    """The formatted traceback without the platform's and the standard library's frames."""
    try:
        found = traceback.TracebackException.from_exception(error, compact=True)
        for part in _all_parts(found):
            kept = [frame for frame in part.stack if not is_platform(frame.filename)]
            part.stack = traceback.StackSummary.from_list(kept)
        text = clean("".join(found.format()))
    except Exception as broken:  # an author's exception class may break the formatter itself
        text = f"{type(error).__name__}: its traceback cannot be shown ({type(broken).__name__})\n"
    if len(text) > TRACEBACK_MAX:
        text = "…\n" + text[-TRACEBACK_MAX:]
    return text


def is_platform(filename: str) -> bool:
    """Whether code of this file is the platform's or Python's own, so that authors need not see
    it."""
    return filename.startswith(_PLATFORM)


def _all_parts(
    top: traceback.TracebackException,
) -> Iterator[traceback.TracebackException]:
    parts = [top]
    while parts:
        part = parts.pop()
        yield part
        parts.extend(p for p in (part.__cause__, part.__context__) if p is not None)
        parts.extend(part.exceptions or ())


def revive(error: Mapping[str, Json], step: str) -> Exception:
    """Make the exception that an author sees from a step_failed entry."""
    found = _instance(error)
    body = str(error.get("traceback") or "")
    if "  File " in body:
        found.add_note(f"raised in step {step}:\n{body.rstrip()}")
    return found


def _instance(error: Mapping[str, Json]) -> Exception:
    name, message = str(error.get("type", "StepFailed")), str(error.get("message", ""))
    data = error.get("data") or {}
    if name == "CommandFailed":
        return CommandFailed(
            message,
            exit_code=data.get("exit_code"),
            output_tail=str(data.get("output_tail") or ""),
            ended=data.get("ended"),
        )
    if name == "Rejected":
        return Rejected(
            message, user=str(data.get("user") or ""), comment=str(data.get("comment") or "")
        )
    if name == "WaitTimeout":
        return WaitTimeout(message)
    if name == "StepFailed":
        return StepFailed(message, type=str(data.get("type") or name), run_id=data.get("id"))
    if name in _PLAIN:
        return _PLAIN[name](message)
    if "class" in data:
        return _author_instance(str(data["class"]), name, message)
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Exception):
        made = _bare(known, message)
        if made is not None and str(made) == message:
            return made
    return StepFailed(message, type=name)


_PLAIN: Mapping[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (CapabilityError, NonRetryable, NonRetryableDelayError, NotGranted, StepTimeout)
}


def _author_instance(path: str, name: str, message: str) -> Exception:
    """The author's own class, if this code still has it; its attributes beyond args are lost."""
    module, _, qualified = path.partition(":")
    found: object = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Exception):
        made = _bare(found, message)
        if made is not None:
            return made
    return StepFailed(message, type=name)


def _bare(cls: type[Exception], message: str) -> Exception | None:
    """An instance whose __init__ was not run, since nobody knows what arguments it wants."""
    try:
        made = cls.__new__(cls)
        made.args = (_unquoted(message) if issubclass(cls, KeyError) else message,)
    except TypeError:  # e.g. UnicodeDecodeError, ExceptionGroup: they insist on their arguments
        return None
    return made


def _unquoted(message: str) -> object:
    """The key of a KeyError, whose text is the key's repr."""
    try:
        return ast.literal_eval(message)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return message


def clean(text: str) -> str:
    """Text as every database and screen can hold it: no lone surrogates, no NUL."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
