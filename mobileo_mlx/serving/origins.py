"""Names of machines and origins of pages, as requests give them and as users allow them."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple, TypeAlias

from ..errors import OptionError

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_-][a-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\s]+)", re.ASCII)
_PORTS = {"http": 80, "https": 443}


class Host(NamedTuple):
    """The `Host` of a request, or what an `Origin` has in its place.

    Attributes:
        name: in small letters and without the dot at its end, or an address without brackets.
        port: None where it is that of the scheme.
    """

    name: str
    port: int | None

    def at(self, port: int | None) -> Host:
        """With that port, if it names none."""
        return self if self.port is not None else Host(self.name, port)

    @property
    def address(self) -> Address | None:
        """None for a name."""
        return _address(self.name)

    @property
    def is_loopback(self) -> bool:
        """Whether it is an address that no other machine has."""
        return self.address is not None and _unmapped(self.address).is_loopback


def parse_host(text: str) -> Host | None:
    """`name`, `name:port`, `[address]:port`; None for what is nothing of it."""
    match = _HOST.fullmatch(text.lower())
    if match is None:
        return None
    name, port = match["name"], match["port"]
    if name.startswith("["):
        name = name[1:-1]
        if _address(name) is None:
            return None
    if port is not None and not 0 < int(port) < 2**16:
        return None
    return Host(name.removesuffix("."), None if port is None else int(port))


def is_loopback(host: str) -> bool:
    """Whether a server that listens at `host` is out of reach for other machines."""
    address = _address(host.strip("[]"))
    return host.lower() == "localhost" if address is None else _unmapped(address).is_loopback


def check_trusted_host(name: str) -> str:
    """The name as it is compared.

    Raises:
        OptionError: it is not the name of a machine.
    """
    host = parse_host(name)
    if host is None or host.port is not None:
        raise OptionError(
            f"--trusted-host {name}: give the name of a machine, without a port, such as mac.example.org."
        )
    return host.name


def check_origin(origin: str) -> str:
    """The origin as a browser writes it.

    Raises:
        OptionError: it is not an origin.
    """
    match = _ORIGIN.fullmatch(origin.lower().removesuffix("/"))
    host = parse_host(match["host"]) if match is not None else None
    if match is None or host is None:
        raise OptionError(
            f"--cors-origin {origin}: give scheme and host of a page, and its port where it has one, such as "
            "http://localhost:3000."
        )
    default = f":{_PORTS.get(match['scheme'])}"  # a browser leaves it out
    return match[0].removesuffix(default)


def own_names() -> set[str]:
    """What this machine is called by its neighbours."""
    name = socket.gethostname().lower().removesuffix(".")
    return {name, name.split(".")[0], f"{name.split('.')[0]}.local"}


def is_origin(text: str) -> bool:
    """Whether it is written as one; `null`, which is what a page without an origin sends, is not."""
    return _ORIGIN.fullmatch(text.lower()) is not None


def is_same(origin: str, scheme: str, host: str) -> bool:
    """Whether an origin is that of a server which a request reached under `host`, the text of its header."""
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None or match["scheme"] != scheme:
        return False
    default = _PORTS.get(scheme)
    ours, theirs = parse_host(host), parse_host(match["host"])
    return ours is not None and theirs is not None and ours.at(default) == theirs.at(default)


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _unmapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    return getattr(address, "ipv4_mapped", None) or address
