"""Routes of artifacts: the files that a run's commands kept, and their contents."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from ci_platform.api.answers import Answer
from ci_platform.api.desk import From
from ci_platform.model import RunId
from ci_platform.shell import Artifact

router = APIRouter(tags=["runs"])

DOWNLOAD = "application/octet-stream"  # never shown by a browser, whatever is in it


class ArtifactAnswer(Answer):
    step: str  # sh:build
    path: str
    size: int
    sha256: str
    report: bool
    url: str

    @classmethod
    def of(cls, found: Artifact, run_id: RunId, base_url: str) -> ArtifactAnswer:
        return cls(
            step=str(found.step),
            path=found.path,
            size=found.size,
            sha256=found.sha256,
            report=found.report,
            url=f"{base_url}/api/v1/runs/{run_id}/artifacts/{found.sha256}",
        )


class Artifacts(Answer):
    artifacts: list[ArtifactAnswer]


@router.get("/runs/{run_id}/artifacts")
def list_artifacts(caller: From, run_id: str) -> Artifacts:
    """The files that its commands kept: `artifacts` and `reports` of step.sh."""
    found = caller.desk.queries.artifacts(caller.actor(), RunId(run_id))
    base_url = caller.desk.base_url
    return Artifacts(artifacts=[ArtifactAnswer.of(one, RunId(run_id), base_url) for one in found])


@router.get(
    "/runs/{run_id}/artifacts/{sha256}",
    response_class=StreamingResponse,
    responses={200: {"content": {DOWNLOAD: {}}, "description": "The file."}},
)
def get_artifact(caller: From, run_id: str, sha256: str) -> StreamingResponse:
    """One of them, by the SHA-256 of its content."""
    found, pieces = caller.desk.queries.artifact(caller.actor(), RunId(run_id), sha256)
    name = quote(found.path.rpartition("/")[2])
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Content-Length": str(found.size),
        "ETag": f'"{found.sha256}"',
    }
    return StreamingResponse(pieces, 200, headers, DOWNLOAD)
