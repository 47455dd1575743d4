"""The document around a page: head, style sheet, content security policy.

The policy admits the page's own style sheet, by its digest, and images in data URIs; nothing else
is loaded or run, whatever a class name may hold.
"""

from __future__ import annotations

import base64
import hashlib
import re

from pipeline.report.markup import Markup, element
from pipeline.report.stylesheet import STYLESHEET

_STYLE = re.compile(r' style="([^"]*)"')


def document(title: str, body: Markup) -> str:
    """Return a whole document.

    Args:
        title: Of the window.
        body: Everything that is shown.
    """
    lifted, rules = _lift_styles(body)
    style = STYLESHEET + rules
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        # Written by hand: escaping its quotes would be right too, and unreadable.
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    return f"<!doctype html>\n{element('html', head, element('body', lifted), lang='en')}\n"


def _lift_styles(body: str) -> tuple[Markup, str]:
    """Turn every style attribute into a class, so that the policy can forbid inline styles.

    Escaped text holds no quotes, so that only attributes of ours can match.
    """
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return f' class="{names.setdefault(found[1], f"s{len(names)}")}"'

    lifted = _STYLE.sub(name, body)
    return Markup(lifted), "".join(f".{name}{{{rule}}}\n" for rule, name in names.items())
