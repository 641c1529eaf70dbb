"""`self.env` of a pipeline under test: files given by the test, storage and runs in memory.

Answers the questions of env.py as a platform would, without its quotas and refusals. `kv`, `sql`
and `runs` are open to the test: what it puts there beforehand, the pipeline finds, and the other
way round.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Mapping, Sequence

from pipelines.testing_runs import OtherRuns, RefusedByRuns
from pipelines.wire import Json


class TestedEnv:
    """What `self.env` leads to."""

    __test__ = False  # pytest: not a test class

    def __init__(
        self, files: Mapping[str, str] | None = None, changed: Sequence[str] | None = None
    ) -> None:
        self.files = dict(files or {})
        self.changed = sorted(self.files if changed is None else changed)
        self.kv: dict[str, Json] = {}
        self.runs = OtherRuns()
        self.sql = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)

    def ask(self, request: str) -> str:
        asked = json.loads(request)
        arguments: Mapping[str, Json] = asked["arguments"]
        try:
            value = self._answer(f"{asked['capability']}.{asked['method']}", arguments)
        except FileNotFoundError as error:
            return json.dumps({"error": {"type": "FileNotFoundError", "message": str(error)}})
        except RefusedByRuns as error:
            return json.dumps({"error": {"type": error.type, "message": str(error)}})
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            return json.dumps({"error": {"type": "SqlError", "message": str(error)}})
        return json.dumps({"value": value})

    def _answer(self, question: str, arguments: Mapping[str, Json]) -> Json:
        if question.startswith("runs."):
            return self.runs.answer(question.removeprefix("runs."), arguments)
        match question:
            case "files.read_text":
                if arguments["path"] not in self.files:
                    raise FileNotFoundError(f"{arguments['path']!r} was not given to the test")
                return self.files[arguments["path"]]
            case "files.changed":
                return self.changed
            case "storage.kv.get":
                return [self.kv[arguments["key"]]] if arguments["key"] in self.kv else []
            case "storage.kv.put":
                self.kv[arguments["key"]] = arguments["value"]
                return None
            case "storage.kv.delete":
                return self.kv.pop(arguments["key"], self) is not self
            case "storage.kv.list":
                prefix, after = arguments["prefix"], arguments["after"]
                keys = sorted(key for key in self.kv if key.startswith(prefix) and key > after)
                return keys[: arguments["limit"]]
            case "storage.sql.execute":
                return self._execute(arguments["statement"], arguments["arguments"])
        raise sqlite3.NotSupportedError(f"self.env has no {question} in tests")

    def _execute(self, statement: str, arguments: Sequence[Json]) -> list[dict[str, Json]]:
        given = [
            base64.b64decode(each["base64"]) if isinstance(each, dict) else each
            for each in arguments
        ]
        cursor = self.sql.execute(statement, given)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, map(_told, row), strict=True)) for row in cursor]


def _told(value: Json) -> Json:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value
