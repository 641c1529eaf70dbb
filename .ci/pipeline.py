"""Sluice builds and tests itself.

Commands have no network, so what they need comes from the server: it is started with
SLUICE_COMMAND_TOOLS naming an environment made by `make test` (docs/hacking.md). The tests that
need a browser, a database server or a sandbox of their own run in `.ci/run`, outside of one.
"""

import asyncio

from pipelines import Choice, Pipeline, on_manual, on_pull_request, on_push


class CI(Pipeline):
    triggers = [
        on_push(),
        on_pull_request(),
        on_manual(inputs={"tests": Choice("unit", "all", default="unit")}),
    ]
    timeout = "30 minutes"

    async def run(self, event, step):
        everything = (event.params or {}).get("tests") == "all"
        where = "tests" if everything else "tests/unit"
        await asyncio.gather(
            step.sh("format", "ruff format --check ."),
            step.sh("lint", "ruff check ."),
            step.sh("types", "mypy"),
            step.sh("tests", f"python -m pytest -q {where} --junitxml junit.xml"),
        )
        wheel = await step.sh(
            "wheel",
            "python -m pip wheel -q --no-deps --no-build-isolation --no-index --wheel-dir dist . &&"
            ' echo "file=$(ls dist/*.whl)" >> "$CI_OUTPUT"',
        )
        return {"wheel": wheel.outputs["file"]}
