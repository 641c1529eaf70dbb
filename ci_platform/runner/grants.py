"""What of the network a command is given: what its server, its repository and it itself say.

The same for every runner; `egress.py` is the way out itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.hosts import Host, parse_host
from ci_platform.runner.egress import Network, Rules
from ci_platform.runner.limits import Excess
from ci_platform.shell import CommandSpec


@dataclass(frozen=True, slots=True)
class Grants:
    """Of one server."""

    any: bool = False  # whether commands may name hosts to reach
    hosts: Sequence[Host] | None = None  # the only ones; None: any
    private: Sequence[Network] = ()  # inner networks that such a host may be in

    @classmethod
    def parse(cls, network: bool | Sequence[str], private: Sequence[str]) -> Grants:
        """Raises ValueError."""
        return cls(
            network is not False,
            None if isinstance(network, bool) else [parse_host(one) for one in network],
            [ipaddress.ip_network(one) for one in private],
        )

    def refusal(self, spec: CommandSpec) -> Excess | None:
        """Why a command does not get the network it asks for, if it asks for one."""
        hosts = ", ".join(spec.network)
        if spec.network and not self.any:
            return Excess(
                "network",
                f"The command asks to reach {hosts}, but this server gives commands no network "
                "(SLUICE_COMMAND_NETWORK).",
            )
        if spec.network and not spec.trusted:
            return Excess("network", "Commands of untrusted code get no network.")
        if spec.network and spec.allowed is not None and not spec.allowed:
            return Excess(
                "network",
                f"The command asks to reach {hosts}, but the repository does not allow it: it "
                "gives commands no network (its maintainers can: sluice repo network).",
            )
        try:
            self.rules(spec)
        except ValueError as error:
            return Excess("invalid", f"The command cannot be run: network: {error}.")
        return None

    def rules(self, spec: CommandSpec) -> Rules:
        """Raises ValueError."""
        ours = None if spec.allowed is None else [parse_host(one) for one in spec.allowed]
        named = [parse_host(one) for one in spec.network]
        return Rules(named, self.hosts, self.private, ours)
