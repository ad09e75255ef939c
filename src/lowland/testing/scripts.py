"""How the rules' scripts are made of parts."""

from __future__ import annotations


def joined(*parts: str) -> str:
    """Join the parts of a script; empty ones are left out."""
    return "\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"
