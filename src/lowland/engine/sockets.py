"""Which addresses this process and its descendants listen on."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import psutil


def listening() -> list[str]:
    """List the internet sockets on which this process and its descendants listen."""
    own, found = psutil.Process(), set()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):  # it may have ended by now
            for place in process.net_connections("inet"):
                if place.status == psutil.CONN_LISTEN:
                    host = ipaddress.ip_address(place.laddr.ip)
                    host = getattr(host, "ipv4_mapped", None) or host  # one socket may serve both families
                    found.add(f"{process.name()} {host}:{place.laddr.port}")
    return sorted(found)
