"""What pipeline authors import: `from pipelines import Pipeline, on_push`."""

from pipelines.declare import (
    Boolean,
    Choice,
    Concurrency,
    Number,
    Pipeline,
    Retry,
    Text,
    on_manual,
    on_pull_request,
    on_push,
    on_schedule,
    on_tag,
)
from pipelines.errors import (
    CommandFailed,
    NonRetryable,
    NotGranted,
    Rejected,
    StepFailed,
    WaitTimeout,
)
from pipelines.step import Step
from pipelines.values import (
    Approval,
    CommandResult,
    Decision,
    Event,
    ReceivedEvent,
    StepContext,
)

__all__ = [
    "Approval",
    "Boolean",
    "Choice",
    "CommandFailed",
    "CommandResult",
    "Concurrency",
    "Decision",
    "Event",
    "NonRetryable",
    "NotGranted",
    "Number",
    "Pipeline",
    "ReceivedEvent",
    "Rejected",
    "Retry",
    "Step",
    "StepContext",
    "StepFailed",
    "Text",
    "WaitTimeout",
    "on_manual",
    "on_pull_request",
    "on_push",
    "on_schedule",
    "on_tag",
]
