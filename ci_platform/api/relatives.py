"""How a run's answer tells of the runs that it started, and of the one that started it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ci_platform.queries import Relative


class RelativeAnswer(BaseModel):
    """The run that started this one, or one that it started; `step` is the parent's."""

    model_config = ConfigDict(frozen=True)

    id: str
    number: int
    state: str
    step: str

    @classmethod
    def of(cls, relative: Relative) -> RelativeAnswer:
        run = relative.run
        return cls(id=run.id, number=run.number, state=run.state, step=relative.step)
