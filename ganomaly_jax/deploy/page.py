"""The pages of `ganomaly serve`: one to drop images on, with their scores, verdicts and maps, and an API reference."""

from __future__ import annotations

from typing import Any

from ganomaly_jax.report import html

_PACKAGE = "ganomaly_jax.deploy"


def page() -> tuple[str, str]:
    """Renders the page to drop images on.

    Returns:
      The HTML, and its Content-Security-Policy: the page may only run its own script, use its own style and connect to
      its own server.

    Raises:
      MissingError: jinja2 is not installed.
    """
    script = html.digest(html.source(_PACKAGE, "page.js"))
    more = f"script-src '{script}'; img-src blob: data:; connect-src 'self'; "
    return html.render(_PACKAGE, "page.html"), _policy(more, "page.css")


def docs(document: dict[str, Any]) -> tuple[str, str]:
    """Renders an OpenAPI document as a page without scripts; returns the same as `page`."""

    def follow(part: dict[str, Any]) -> dict[str, Any]:
        """Returns a part of the document, resolving a reference."""
        if "$ref" not in part:
            return part
        found = document
        for name in part["$ref"].split("/")[1:]:
            found = found[name]
        return found

    policy = _policy("img-src data:; ", "page.css", "docs.css")
    return html.render(_PACKAGE, "docs.html", document=document, follow=follow), policy


def _policy(more: str, *styles: str) -> str:
    """Returns a Content-Security-Policy that allows these styles and no content from elsewhere."""
    allowed = " ".join(f"'{html.digest(html.source(_PACKAGE, name))}'" for name in styles)
    return f"default-src 'none'; style-src {allowed}; {more}base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
