"""The page of `ganomaly serve`: drop images on it and see their scores, verdicts and maps."""

from __future__ import annotations

from ganomaly_jax.report import html

_PACKAGE = "ganomaly_jax.deploy"


def page() -> tuple[str, str]:
    """Renders the page.

    Returns:
      The HTML, and its Content-Security-Policy: the page may run its own script, use its own style and talk to its own
      server, nothing else.

    Raises:
      MissingError: jinja2 is not installed.
    """
    script, style = (html.digest(html.source(_PACKAGE, name)) for name in ("page.js", "page.css"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.render(_PACKAGE, "page.html"), policy
