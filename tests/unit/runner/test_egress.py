"""Which destinations a step may reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from ci_platform.hosts import parse_host
from ci_platform.runner.egress import Refused, Rules


def rules(
    *named: str,
    allowed: Sequence[str] | None = None,
    of_repository: Sequence[str] | None = None,
    answer: Sequence[str] = ("93.184.216.34",),
) -> Rules:
    return Rules(
        [parse_host(one) for one in named],
        None if allowed is None else [parse_host(one) for one in allowed],
        of_repository=None if of_repository is None else [parse_host(one) for one in of_repository],
        resolve=lambda name, port: answer,
    )


def test_a_named_host_is_reached_on_the_usual_ports_only() -> None:
    found = rules("pypi.org")
    assert found.addresses("pypi.org", 443) == ["93.184.216.34"]
    assert found.addresses("PyPI.org.", 80) == ["93.184.216.34"]
    with pytest.raises(Refused, match="does not name it"):
        found.addresses("pypi.org", 22)
    assert rules("pypi.org:8443").addresses("pypi.org", 8443)
    with pytest.raises(Refused):
        rules("pypi.org:8443").addresses("pypi.org", 443)


@pytest.mark.parametrize("name", ["example.org", "xpypi.org", "pypi.org.evil.net", "93.184.216.34"])
def test_other_hosts_are_not(name: str) -> None:
    with pytest.raises(Refused, match="does not name it"):
        rules("pypi.org").addresses(name, 443)


def test_a_star_stands_for_everything_below_and_not_for_the_name_itself() -> None:
    found = rules("*.pythonhosted.org")
    assert found.addresses("files.pythonhosted.org", 443)
    assert found.addresses("a.b.pythonhosted.org", 443)
    for name in ("pythonhosted.org", "evilpythonhosted.org"):
        with pytest.raises(Refused):
            found.addresses(name, 443)


def test_the_server_may_narrow_what_steps_name() -> None:
    with pytest.raises(Refused, match="the server does not allow it"):
        rules("evil.net", allowed=["pypi.org"]).addresses("evil.net", 443)
    assert rules("pypi.org", allowed=["pypi.org"]).addresses("pypi.org", 443)


def test_the_repository_may_narrow_it_further() -> None:
    with pytest.raises(Refused, match="the repository does not allow it .*sluice repo network"):
        rules("evil.net", of_repository=["pypi.org"]).addresses("evil.net", 443)
    with pytest.raises(Refused, match="the repository does not allow it"):
        rules("pypi.org", of_repository=[]).addresses("pypi.org", 443)
    assert rules("a.pypi.org", of_repository=["*.pypi.org"]).addresses("a.pypi.org", 443)


def test_the_repository_does_not_widen_what_the_server_allows() -> None:
    found = rules("evil.net", allowed=["pypi.org"], of_repository=["evil.net"])
    with pytest.raises(Refused, match="the server does not allow it"):
        found.addresses("evil.net", 443)
    with pytest.raises(Refused, match="the step does not name it"):
        rules("pypi.org", of_repository=["evil.net"]).addresses("evil.net", 443)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("64:ff9b:1::a00:1", "2001:0:53aa:64c::1"),
    ],
)
def test_a_name_that_leads_inside_is_refused(address: str) -> None:
    with pytest.raises(Refused, match="not on the public internet"):
        rules("pypi.org", answer=[address]).addresses("pypi.org", 443)


def test_only_the_public_ones_of_several_addresses_are_dialled() -> None:
    found = rules("pypi.org", answer=["10.0.0.1", "93.184.216.34", "::1"])
    assert found.addresses("pypi.org", 443) == ["93.184.216.34"]


def test_an_inner_network_can_be_opened() -> None:
    inner = [ipaddress.ip_network("10.1.0.0/16")]
    found = Rules([parse_host("mirror")], None, inner, resolve=lambda name, port: ["10.1.2.3"])
    assert found.addresses("mirror", 443) == ["10.1.2.3"]


def test_a_name_without_an_address_is_refused() -> None:
    def fails(name: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    with pytest.raises(Refused, match="cannot be resolved"):
        Rules([parse_host("pypi.org")], None, resolve=fails).addresses("pypi.org", 443)


@pytest.mark.parametrize(
    "pattern", ["", "*", "http://x", "a b", "*.", "x:0", "x:99999", "a/b", "*.*.x"]
)
def test_what_is_not_a_host_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        parse_host(pattern)
