"""Everything that can go wrong, sorted by who must act.

    SluiceError
    ├── RequestError        the caller asked for something that cannot be; becomes a 4xx
    │   ├── InvalidRequest      a field has a bad value (400); names the field
    │   │   └── SqlError            what a repository's own database says of a statement
    │   ├── NotSignedIn         no or bad credentials (401)
    │   ├── NotFound            no such thing, or not yours to see (404)
    │   │   ├── RepositoryNotFound, RunNotFound, StepNotFound, HookNotFound, FileMissing
    │   ├── Forbidden           you may see it, but not do this (403)
    │   │   └── NotGranted          code in a sandbox may not do this here
    │   ├── Conflict            the thing's present state does not allow it (409)
    │   │   ├── RunExists, RepositoryExists
    │   ├── TooLarge            over a limit; names the limit (413)
    │   └── TooMany             a quota or rate is used up (429)
    ├── PipelineError       the author's code or command said no; fails the run
    │   ├── SourceError         the pipeline file does not load; has the author's traceback
    │   └── LimitExceeded       the code hit a sandbox limit; names it
    └── InternalError       the platform broke its promise; errors the run
        ├── EnvelopeMismatch    the envelope and the run's row disagree
        ├── LeaseLost           another worker has taken over; write nothing and let go
        ├── SandboxUnavailable  no sandbox can be started on this machine
        ├── RunnerUnavailable   commands cannot be run on this machine; says what to do
        └── StoreUnavailable    the database or the object store cannot be reached, read or written
            └── StoreFull           its disk is full

The docstring of a class is its default message.
"""

from __future__ import annotations


class SluiceError(Exception):
    """Something went wrong."""

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip()
        super().__init__(self.detail)


class RequestError(SluiceError):
    """The request cannot be carried out."""

    status = 400


class InvalidRequest(RequestError):
    """A field of the request has a bad value."""

    def __init__(self, detail: str | None = None, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class SqlError(InvalidRequest):
    """The statement cannot be carried out."""


class NotSignedIn(RequestError):
    """Sign in, or send a valid token."""

    status = 401


class NotFound(RequestError):
    """There is no such thing, or it is not yours to see."""

    status = 404


class RepositoryNotFound(NotFound):
    """No repository has this name, or it is not yours to see."""


class RunNotFound(NotFound):
    """No run has this id; it may have been pruned."""


class StepNotFound(NotFound):
    """The run has no such step."""


class FileMissing(NotFound):
    """The repository has no such file at this commit."""


class HookNotFound(NotFound):
    """No webhook has this id."""


class Forbidden(RequestError):
    """You may see this, but not do it."""

    status = 403


class NotGranted(Forbidden):
    """This capability is not granted."""


class Conflict(RequestError):
    """The present state does not allow this."""

    status = 409


class RunExists(Conflict):
    """A run with this id exists."""


class RepositoryExists(Conflict):
    """A repository with this name exists."""


class TooLarge(InvalidRequest):
    """The value is over its size limit."""

    status = 413


class TooMany(RequestError):
    """A quota or rate is used up."""

    status = 429


class PipelineError(SluiceError):
    """The pipeline's own code or command failed."""


class SourceError(PipelineError):
    """The pipeline file does not load."""

    def __init__(
        self, detail: str | None = None, *, traceback: str = "", missing: bool = False
    ) -> None:
        """`missing`: there is no such file, so nothing that should load."""
        super().__init__(detail)
        self.traceback = traceback
        self.missing = missing


class LimitExceeded(PipelineError):
    """The pipeline's code hit a limit of its sandbox."""

    def __init__(self, detail: str | None = None, *, limit: str = "") -> None:
        super().__init__(detail)
        self.limit = limit


class InternalError(SluiceError):
    """The platform broke its promise."""


class EnvelopeMismatch(InternalError):
    """The run's envelope names another repository, pipeline or commit than its row."""


class LeaseLost(InternalError):
    """The lease has gone to another worker."""


class SandboxUnavailable(InternalError):
    """No sandbox can be started on this machine."""


class RunnerUnavailable(InternalError):
    """Commands cannot be run on this machine."""


class StoreUnavailable(InternalError):
    """The database or the object store cannot be reached, read or written."""


class StoreFull(StoreUnavailable):
    """There is no space left where the database keeps its files."""
