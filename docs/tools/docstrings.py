"""Docstrings for the reference: ``.. math::`` blocks become ``$$`` blocks, and an example becomes code.

The pages turn ``$$`` into MathML. An extension of griffe, which knows sections of examples by their plural alone, and
takes others for Markdown.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_BLOCK = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?:(?P=indent) +\S.*)?\n)*)", re.MULTILINE)


_EXAMPLE = re.compile(r"^Example:$(?=\n+ *>>>)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **context: Any) -> None:
        """Rewrite one docstring.

        Args:
            obj: The object.
            **context: What else griffe hands over.
        """
        del context
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Return a docstring with formulas and examples in the notation of the pages.

    Args:
        text: The docstring, its indentation removed.

    Returns:
        The same text with ``$$`` blocks and a section of examples.
    """
    return _EXAMPLE.sub("Examples:", _BLOCK.sub(_dollars, text + "\n")).rstrip("\n")


def _dollars(found: re.Match[str]) -> str:
    formula = " ".join((found["first"] + " " + textwrap.dedent(found["rest"])).split())
    return f"{found['indent']}$$\n{found['indent']}{formula}\n{found['indent']}$$\n\n"
