"""What `ganomaly serve` says of itself: its OpenAPI document."""

from __future__ import annotations

from typing import Any

from ganomaly_jax import __version__
from ganomaly_jax.scoring.calibration import VERDICTS

_ERRORS = {
    "400": "No body, or one that broke off.",
    "408": "The body did not arrive in time.",
    "413": "More bytes or more pixels than are taken; the message says how many are.",
    "415": "A form, or a body with a content coding. Wanted: the bytes of the file as they are.",
    "422": "Not an image that can be read, or none that this detector takes; the message says why.",
    "429": "Too many images are in work already. Ask again after as many seconds as Retry-After says.",
    "500": "The detector failed on the batch that this image was in; the message says how.",
    "503": "Not ready: it is starting, or it has broken. Ask again after as many seconds as Retry-After says.",
}
_AGAIN = {
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _posted(summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    """An operation that takes an image."""
    binary = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
    schema = {"$ref": "#/components/schemas/Error"}
    failed = {
        code: _json(text, schema) | ({"headers": _AGAIN} if code in ("429", "503") else {})
        for code, text in _ERRORS.items()
    }
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "description": "One image file: PNG, JPEG, BMP, TIFF, WebP, GIF or PNM.",
                "required": True,
                "content": {"application/octet-stream": binary, "image/*": binary},
            },
            "responses": {"200": answer} | failed,
        }
    }


def _got(summary: str, **responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {code.lstrip("_"): answer for code, answer in responses.items()}}}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document, of plain values that json can write."""
    number = {"type": ["number", "null"]}
    verdict = {
        "type": "object",
        "required": ["score", "p_value", "verdict", "threshold"],
        "additionalProperties": False,
        "properties": {
            "score": {**number, "description": "Higher is more anomalous; null where the image is invalid."},
            "p_value": {
                **number,
                "minimum": 0,
                "maximum": 1,
                "description": "Share of normal images that are at least as far out; null where it is invalid.",
            },
            "verdict": {"enum": list(VERDICTS)},
            "threshold": {**number, "description": "Scores above it are anomalous; null where none ever is."},
        },
    }

    def message(name: str) -> dict[str, Any]:
        text = {name: {"type": "string"}}
        return {"type": "object", "required": [name], "additionalProperties": False, "properties": text}

    status = {"$ref": "#/components/schemas/Status"}
    picture = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    text = {"schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ganomaly",
            "version": __version__,
            "description": "Is an image normal, and where is it not?",
        },
        "paths": {
            "/score": _posted(
                "Score, p-value and verdict.", _json("The verdict.", {"$ref": "#/components/schemas/Verdict"})
            ),
            "/explain": _posted("A picture that shows where.", {"description": "A PNG.", "content": picture}),
            "/healthz": _got("Whether it lives.", _200=_json("It does.", status), _500=_json("It does not.", status)),
            "/readyz": _got("Whether it takes images.", _200=_json("It does.", status), _503=_json("Not now.", status)),
            "/metrics": _got(
                "Figures for Prometheus.", _200={"description": "Its text format.", "content": {"text/plain": text}}
            ),
            "/openapi.json": _got("This document.", _200=_json("It.", {"type": "object"})),
            "/": _got("A page to drop images on.", _200={"description": "The page.", "content": {"text/html": text}}),
        },
        "components": {"schemas": {"Verdict": verdict, "Error": message("error"), "Status": message("status")}},
    }
