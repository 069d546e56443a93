"""HTML pages from the package's jinja2 templates. Values are escaped, and a page is a single self-contained file."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Environment

REPORTS = "ganomaly_jax.report"
"""The package whose folder `templates` holds the pages of runs and sweeps."""


class MissingError(UserError, ImportError):
    """Raised if a library that the report needs is not installed."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Holds a table of text, for the macro `table` of `macros.html`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """Holds a PNG to embed in a page, for the macro `picture` of `macros.html`."""

    source: str
    """A `data:` URL; empty if the file cannot be read."""
    alt: str
    caption: str = ""
    size: str = ""
    """A class of `report.css`: `half`, `plot` or `wide`; empty for its own size. Never wider than the page."""
    problem: str = ""
    """Why the file cannot be read; empty if it can."""


def render(package: str, template: str, **values: Any) -> str:
    """Renders a template as one HTML page.

    Args:
      package: the package whose folder `templates` holds the template.
      template: the name of the template.
      values: the variables of the template. Text is escaped, and unprintable characters become question marks.

    Returns:
      The page.

    Raises:
      MissingError: jinja2 is not installed.
    """
    return environment(package).get_template(template).render(values)


@functools.cache
def environment(package: str) -> Environment:
    """Returns the jinja2 environment of a package's folder `templates`.

    Templates include other files of the folder as they are with `source(name)`, and name them in a
    Content-Security-Policy with `digest(name)`.

    Raises:
      MissingError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise MissingError("pictures and report.html need jinja2: pip install jinja2") from None

    def printable(value: Any) -> Any:
        return value if isinstance(value, Markup) else _printable(str(value))

    made = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.PackageLoader(package),
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    made.globals |= {
        "source": lambda name: Markup(source(package, name)),
        "digest": lambda name: digest(source(package, name)),
    }
    return made


def source(package: str, name: str) -> str:
    """Returns the text of a file in a package's folder `templates`."""
    return resources.files(package).joinpath("templates", name).read_text("utf-8")


def digest(text: str) -> str:
    """Returns the hash by which a Content-Security-Policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def picture(path: Path, caption: str = "", size: str = "") -> Picture:
    """Embeds a PNG file as a picture for a page; a file that cannot be read becomes a sentence that says so."""
    from markupsafe import Markup

    alt = caption or path.stem.replace("_", " ")
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        return Picture("", alt, caption, size, f"{path.name} cannot be read: {error.strerror}.")
    return Picture(Markup(f"data:image/png;base64,{data}"), alt, caption, size)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table of text."""
    return Table(header, list(rows))


def show(value: Any) -> str:
    """Formats a value of a JSON file in one line."""
    return value if isinstance(value, str) else json.dumps(value)


def _printable(text: str) -> str:
    """Replaces unprintable characters by question marks; surrogates from file names could not even be encoded."""
    return "".join(part if part.isprintable() or part == "\n" else "?" for part in text)
