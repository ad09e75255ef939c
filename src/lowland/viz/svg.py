"""Embed in an SVG the glyphs that it uses, so that its text is text and looks the same on every machine."""

from __future__ import annotations

import base64
import io
import re

from fontTools import subset  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from matplotlib import font_manager


def embed_font(svg: str, family: str) -> str:
    """Return the SVG with a subset of the font as a ``@font-face`` rule."""
    texts = re.findall(r"<text\b[^>]*>(.*?)</text>", svg, flags=re.DOTALL)
    if not texts:
        return svg
    font = TTFont(font_manager.findfont(family), recalcTimestamp=False)
    options = subset.Options(flavor="woff", notdef_outline=True, hinting=False)
    options.drop_tables += ["FFTM"]  # a time stamp of the font editor, which the subsetter warns of
    cutter = subset.Subsetter(options)
    # Entities add a few letters that are not needed ("&amp;" the a, m and p), which costs some hundred bytes.
    cutter.populate(text=re.sub(r"<[^>]+>", "", "".join(texts)) + "&<>")
    cutter.subset(font)
    font.flavor = "woff"
    stream = io.BytesIO()
    font.save(stream)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    rule = f"@font-face {{ font-family: '{family}'; src: url(data:font/woff;base64,{data}) format('woff'); }}"
    return svg.replace("<defs>", f'<defs>\n  <style type="text/css">{rule}</style>', 1)
