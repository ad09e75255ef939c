"""Which addresses the processes of this process listen on, read from the kernel's own tables."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["listening"]

_LISTENS = "0A"


def listening(process: int | None = None) -> list[str]:
    """List the internet sockets on which a process and its descendants listen."""
    addresses = dict(_table("tcp")) | dict(_table("tcp6"))
    found = set()
    for number in _family(os.getpid() if process is None else process):
        for inode in _sockets(number):
            if inode in addresses:
                found.add(f"{_name(number)} {addresses[inode]}")
    return sorted(found)


def _table(name: str) -> Iterator[tuple[str, str]]:
    # socket inode and address of every listening socket
    with suppress(OSError):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS:
                yield words[9], _address(words[1])


def _address(text: str) -> str:
    # the kernel writes addresses as hexadecimal words in the machine's byte order
    host, _, port = text.partition(":")
    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return f"{address}:{int(port, 16)}"


def _family(process: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, ahead = [], [process]
    while ahead:
        found.append(ahead.pop())
        ahead += children.get(found[-1], [])
    return found


def _sockets(process: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{process}/fd"):
            with suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    yield target[8:-1]


def _name(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return str(process)
