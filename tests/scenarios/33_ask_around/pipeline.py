"""Code that goes around self.env to the host itself gets no more than self.env would give it."""

import json

from wit_world.imports import host

from pipelines import Pipeline


def ask(capability, method, **arguments):
    request = {"v": 1, "capability": capability, "method": method, "arguments": arguments}
    return json.loads(host.ask(json.dumps(request)))["error"]["type"]


class Scenario(Pipeline):
    async def run(self, event, step):
        put = {"key": "a", "value": 1}
        outside = ask("storage.kv", "put", **put)
        return await step.do(
            "inside",
            lambda: [
                outside,
                ask("storage.kv", "put", **put, repository_id="repo_other"),
                ask("storage.sql", "execute", statement="SELECT 1", arguments=[[1]]),
                ask("storage.kv", "put", key="a", value="x" * 3_000_000),
                ask("files", "read_text", path="../../secret.key"),
                ask("secrets", "get", name="DEPLOY_KEY"),
            ],
        )
