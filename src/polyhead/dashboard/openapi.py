"""The description of the dashboard's addresses for other programs, made from what reads their requests."""

from __future__ import annotations

from typing import Any

import msgspec

from polyhead.dashboard.answers import ARRAYS, JSON, QUESTIONS, Question
from polyhead.dashboard.export import QUESTION as EXPORT
from polyhead.dashboard.requests import SCHEMAS
from polyhead.dashboard.schemas import add_names, spec_schemas
from polyhead.page import version

EVERY = (*QUESTIONS, EXPORT)
"""Every question."""

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_REFUSALS = {
    "400": "The request is not JSON.",
    "403": "The request comes from another site.",
    "404": "Nothing has that name.",
    "408": "The request did not come whole in time.",
    "409": "A file of the model is not what it should be.",
    "413": "The request is too long.",
    "415": "The request is of another media type.",
    "421": "The request is for another host.",
    "422": "The request is not one that can be answered; the message says what would be.",
    "424": "What would answer needs a package that is not installed.",
    "503": "The model is still being loaded, or too many requests are waiting.",
}


def openapi(root: str) -> dict[str, Any]:
    """Return the description.

    Args:
        root: Where the addresses begin.

    Returns:
        An OpenAPI 3.1 document as JSON-ready data.
    """
    taken = [one.request for one in EVERY if one.request not in (None, bytes)]
    schemas, components = msgspec.json.schema_components(taken, ref_template=f"{SCHEMAS}{{name}}")
    add_names(components)
    of_request = dict(zip(taken, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "polyhead's dashboard",
            "version": version(),
            "description": "What the page of `polyhead serve` asks; every request has a limit, and no answer is kept.",
        },
        "paths": {f"{root}/{one.path}": {_method(one): _operation(one, of_request)} for one in EVERY},
        "components": {
            "schemas": {**components, **spec_schemas(SCHEMAS), "Error": _ERROR},
            "responses": {
                f"Refusal{status}": {"description": what, "content": {JSON: {"schema": _ref("schemas/Error")}}}
                for status, what in _REFUSALS.items()
            },
        },
    }


def _method(question: Question) -> str:
    return "get" if question.request is None else "post"


def _operation(question: Question, of_request: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["schema"]} if question.gives == JSON else {"type": "string"}
    answer = {"description": question.what, "content": {question.gives: {"schema": schema}}}
    refusals = {status: _ref(f"responses/Refusal{status}") for status in _REFUSALS}
    operation = {"operationId": question.path, "summary": question.what, "responses": {"200": answer, **refusals}}
    if question.request is not None:
        is_file = question.request is bytes
        body = {"type": "string", "format": "binary"} if is_file else of_request[question.request]
        kind = ARRAYS if is_file else JSON
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": body}}}
    return operation


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{name}"}
