"""The way out: what a step may reach goes through the proxy, and nothing goes past it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ci_platform.runner import SandboxRunner
from ci_platform.shell import CommandSpec, ServiceSpec
from tests.integration.runner_world import (
    COMMIT,
    REPOSITORY,
    RUN,
    Bench,
    GivenTrees,
    objects_in,
)
from tests.integration.site import HOST, answering


@pytest.fixture
def site() -> Iterator[int]:
    with answering() as port:
        yield port


def runner(directory: Path, *, private: bool, network: bool | list[str] = True) -> SandboxRunner:
    return SandboxRunner(
        trees=GivenTrees(),
        objects=objects_in(directory),
        work_dir=directory / "w",
        network=network,
        private_networks=["127.0.0.0/8", "::1/128"] if private else [],
    )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = runner(tmp_path, private=True)
    yield Bench(one)
    one.close()


def fetch(url: str, data: str = "None") -> str:
    return (
        "python3 -c '\nimport urllib.request, urllib.error\n"
        f'try: print(urllib.request.urlopen("{url}", data={data}, timeout=5).read().decode())\n'
        "except urllib.error.HTTPError as e: print(e.code, e.reason)\n'"
    )


def test_a_named_host_is_reached_and_noted(bench: Bench, site: int) -> None:
    url = f"http://{HOST}:{site}/a?b=c"
    result = bench.sh(fetch(url) + "\n" + fetch(url, 'b"sent"'), network=[f"{HOST}:{site}"])
    assert result.exit_code == 0
    assert bench.text("stdout") == (
        f"GET /a?b=c {HOST}:{site} b'' []\nPOST /a?b=c {HOST}:{site} b'sent' []\n"
    )
    assert bench.text("note") == f"network: allowed {HOST}:{site} ({HOST})\n"


def test_a_tunnel_carries_any_bytes_both_ways(bench: Bench, site: int) -> None:
    script = (
        "python3 -c '\nimport socket\n"
        's=socket.create_connection(("127.0.0.1",3128))\n'
        f's.sendall(b"CONNECT {HOST}:{site} HTTP/1.1\\r\\n\\r\\n")\n'
        'got=b""\n'
        'while b"\\r\\n\\r\\n" not in got: got+=s.recv(99)\n'
        'print(got.decode().split("\\r\\n")[0])\n'
        's.sendall(b"GET /through HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n")\n'
        'print(b"".join(iter(lambda: s.recv(999), b"")).decode().split("\\r\\n")[-1])\n'
        "'"
    )
    bench.sh(script, network=[f"{HOST}:{site}"])
    assert bench.text("stdout") == "HTTP/1.1 200 Connection established\nGET /through x b'' []\n"


def test_other_hosts_are_refused_by_name_in_the_log(bench: Bench, site: int) -> None:
    script = fetch("http://evil.example/") + "\n" + fetch("http://evil.example/again")
    bench.sh(script, network=[f"{HOST}:{site}"])
    assert bench.text("stdout").count("403 evil.example:80 cannot be reached from this step") == 2
    assert bench.text("note") == (
        "network: refused evil.example:80: the step does not name it (network= of step.sh)\n"
    )


def test_untrusted_code_gets_no_network_whatever_it_names(bench: Bench, site: int) -> None:
    result = bench.sh("true", network=[f"{HOST}:{site}"], trusted=False)
    assert (result.exit_code, result.ended) == (None, "network")
    assert "untrusted code" in result.detail


def test_nothing_goes_past_the_proxy(bench: Bench, site: int) -> None:
    script = (
        f"python3 -c 'import socket; socket.create_connection((\"{HOST}\", {site}), 2)' && "
        "echo open; python3 -c 'import socket; socket.getaddrinfo(\"localhost.example\", 80)' && "
        "echo open"
    )
    result = bench.sh(f"set +e\n{script}", network=[f"{HOST}:{site}"])
    assert bench.text("stdout") == ""
    assert result.exit_code != 0


def test_a_name_that_leads_inside_is_refused(tmp_path: Path, site: int) -> None:
    one = runner(tmp_path, private=False)
    try:
        bench = Bench(one)
        bench.sh(fetch(f"http://{HOST}:{site}/"), network=[f"{HOST}:{site}"])
        assert bench.text("stdout").startswith("403 ")
        assert "is not on the public internet" in bench.text("note")
    finally:
        one.close()


def test_the_server_s_own_list_narrows_the_step_s(tmp_path: Path, site: int) -> None:
    one = runner(tmp_path, private=True, network=["pypi.org"])
    try:
        bench = Bench(one)
        bench.sh(fetch(f"http://{HOST}:{site}/"), network=[f"{HOST}:{site}"])
        assert "the server does not allow it" in bench.text("note")
    finally:
        one.close()


def test_the_repository_s_own_list_narrows_the_step_s(bench: Bench, site: int) -> None:
    here = f"{HOST}:{site}"
    script = fetch(f"http://{here}/")
    bench.sh(script, network=[here], allowed=["pypi.org"])
    assert f"403 {here} cannot be reached from this step" in bench.text("stdout")
    assert bench.text("note") == (
        f"network: refused {here}: the repository does not allow it"
        " (its maintainers can: sluice repo network)\n"
    )
    bench.sh(script, network=[here], allowed=["pypi.org", here])
    assert bench.text("stdout").startswith("GET / ")


def test_a_repository_without_network_refuses_commands_that_ask_for_it(bench: Bench) -> None:
    result = bench.sh("true", network=["pypi.org"], allowed=[])
    assert (result.exit_code, result.ended) == (None, "network")
    assert "asks to reach pypi.org, but the repository does not allow it" in result.detail
    assert bench.sh("true", allowed=[]).exit_code == 0, "others need none"


def test_services_obey_the_list_of_the_repository(bench: Bench, site: int) -> None:
    here = f"{HOST}:{site}"
    script = f"{fetch(f'http://{here}/')} > /workspace/got; grep -c 403 /workspace/got; sleep 60"
    command = CommandSpec(
        *(REPOSITORY, RUN, "service:db", COMMIT, (), script), network=[here], allowed=["pypi.org"]
    )
    beside = ServiceSpec("db", asdict(command), {"log": "1"}, 20_000)
    result = bench.sh("true", services=[asdict(beside)])
    assert result.exit_code == 0, bench.said
    refused = asdict(replace(command, allowed=[]))
    result = bench.sh("true", run_id="run_2", services=[{**asdict(beside), "command": refused}])
    assert result.ended == "service"
    assert "the repository does not allow it" in result.detail


def test_a_step_that_names_no_host_has_no_proxy(bench: Bench) -> None:
    bench.sh("env | grep -i proxy || echo none")
    assert bench.text("stdout") == "none\n"


def test_a_host_that_is_none_is_refused_with_the_field(bench: Bench) -> None:
    result = bench.sh("true", network=["http://pypi.org/"])
    assert (result.exit_code, result.ended) == (None, "invalid")
    assert "network: 'http://pypi.org/' is not a host" in result.detail


@pytest.mark.parametrize(
    "request_text",
    [
        "GET / HTTP/1.1\\r\\n\\r\\n",
        "CONNECT nonsense HTTP/1.1\\r\\n\\r\\n",
        "GET http:// HTTP/1.1\\r\\n\\r\\n",
    ],
)
def test_what_is_no_proxy_request_gets_an_error(bench: Bench, site: int, request_text: str) -> None:
    script = (
        "python3 -c '\nimport socket\n"
        's=socket.create_connection(("127.0.0.1",3128))\n'
        f's.sendall(b"{request_text}")\n'
        'print(b"".join(iter(lambda: s.recv(999), b"")).decode()[:200])\n'
        "'"
    )
    bench.sh(script, network=[f"{HOST}:{site}"])
    assert " 400 " in bench.text("stdout") or "Error code: 400" in bench.text("stdout")


def test_connections_end_with_their_step(bench: Bench) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        script = (
            "python3 -c '\nimport socket\n"
            's=socket.create_connection(("127.0.0.1",3128))\n'
            f's.sendall(b"CONNECT {HOST}:{port} HTTP/1.1\\r\\n\\r\\n")\n'
            "s.recv(99)\n'"
        )
        bench.sh(script, network=[f"{HOST}:{port}"])
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(10) == b""
