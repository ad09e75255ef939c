"""Formulas as MathML, made when the pages are built: no script runs in the reader's browser and nothing is fetched.

A hook of mkdocs. ``pymdownx.arithmatex`` finds the formulas; what it found is replaced here.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<text>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_page_content(content: str, **context: Any) -> str:
    """Replace every formula of a page.

    Args:
        content: The page as HTML.
        **context: What else mkdocs hands over.

    Returns:
        The page with MathML.
    """
    del context
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    block = found["tag"] == "div"
    formula = convert(html.unescape(found["text"]).strip(), display="block" if block else "inline")
    return f'<div class="formula">{formula}</div>' if block else formula
