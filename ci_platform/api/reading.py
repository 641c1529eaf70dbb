"""What the code of a run reads of other runs: the same JSON that the API answers.

Given by app.py to `self.env.runs`, which has checked whose runs these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from ci_platform.api import answers, entries, requests
from ci_platform.errors import InvalidRequest
from ci_platform.model import Actor, Json, RunId
from ci_platform.queries import Queries

Asked = TypeVar("Asked", bound=requests.Query)


@dataclass(frozen=True, slots=True)
class Reading:
    queries: Queries
    base_url: str

    def status(self, actor: Actor, run_id: RunId) -> Json:
        view = self.queries.run_page(actor, run_id)
        answer = answers.RunAnswer.of_view(view, self.base_url, requests.RunOf())
        return answer.model_dump(mode="json")

    def read(self, actor: Actor, run_id: RunId, what: str, asked: Mapping[str, Json]) -> Json:
        """A page of its journal, or of one of its logs (`what` is logs)."""
        given = {name: value for name, value in asked.items() if name != "id"}
        if what == "journal":
            page = _checked(requests.JournalOf, given)
            found = self.queries.entries(
                actor, run_id, page.filter(), after=page.after, limit=page.limit
            )
            return entries.Journal.of(found).model_dump(mode="json")
        log = _checked(requests.LogOf, given)
        lines = self.queries.log(actor, run_id, log.step, after=log.after, limit=log.limit)
        return {"lines": [answers.LineAnswer.of(line).model_dump(mode="json") for line in lines]}


def _checked(kind: type[Asked], given: Mapping[str, Json]) -> Asked:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        raise InvalidRequest(f"{field}: {first['msg']}", field=field) from None
