"""The example of a service does what it says."""

from __future__ import annotations

from pathlib import Path

from tests.deployment import deployed

EXAMPLE = Path(__file__).parents[2] / "examples" / "service.py"


def test_the_example_of_a_service_runs(tmp_path: Path, guest_cache: Path) -> None:
    with deployed(tmp_path / "data", cache=guest_cache) as deployment:
        deployment.push({".ci/pipeline.py": EXAMPLE.read_text()})
        run_id = deployment.start()
        deployment.work()
        run = deployment.run(run_id)
        assert (run.state, run.output) == ("passed", ["[[3]]", "[[2]]"]), run.error
        said = deployment.log(run_id, "service:db")
    assert said[0] == "service db starts" and "insert into note values (1), (2)" in said
