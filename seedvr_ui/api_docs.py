"""The API's page for people, made on the server from its OpenAPI document: nothing is asked of another host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_METHODS = ("get", "post", "put", "patch", "delete")
_MAX_DEPTH = 6


def to_page(document: Mapping[str, Any]) -> str:
    """The HTML page of an OpenAPI `document`."""
    folder = Path(__file__).with_name("templates")
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.filters["prose"] = _prose
    groups: dict[str, list[dict[str, Any]]] = {}
    for operation in _operations(document):
        groups.setdefault(operation["tag"], []).append(operation)
    models = [
        {"name": name, "about": model.get("description", ""), "fields": list(_fields(model))}
        for name, model in document.get("components", {}).get("schemas", {}).items()
        if "properties" in model
    ]
    page = environment.get_template("api.html")
    return page.render(info=document["info"], groups=groups, models=models)


def _prose(text: str) -> Markup:
    """`text` as HTML, with what stands between backticks as code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in parts
    )


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method not in methods:
                continue
            found = methods[method]
            body = found.get("requestBody", {}).get("content", {})
            example = next((_example(document, kind.get("schema", {})) for kind in body.values()), None)
            yield {
                "id": found["operationId"],
                "tag": found.get("tags", ["other"])[0],
                "method": method.upper(),
                "path": path,
                "summary": found.get("summary", ""),
                "about": found.get("description", ""),
                "parameters": [
                    {
                        "name": parameter["name"],
                        "where": parameter["in"],
                        "type": _type(parameter["schema"]),
                        "about": parameter.get("description", ""),
                        "required": parameter.get("required", False),
                    }
                    for parameter in found.get("parameters", [])
                ],
                "body": "the bytes of the file" if "application/octet-stream" in body else "",
                "example": json.dumps(example, indent=2, ensure_ascii=False) if isinstance(example, dict) else "",
                "responses": [
                    {"code": code, "about": answer.get("description", ""), "model": _model(answer)}
                    for code, answer in sorted(found.get("responses", {}).items())
                ],
            }


def _model(answer: Mapping[str, Any]) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return _type(schema) if schema else ""


def _fields(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    required = model.get("required", [])
    for name, field in model["properties"].items():
        about = field.get("description", "")
        yield {"name": name, "type": _type(field), "about": about, "required": name in required}


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words: `JobInfo`, `list of text`, `number or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    kinds = {"string": "text", "boolean": "true or false", "integer": "whole number", "object": "object"}
    kind = str(schema.get("type", "anything"))
    return kinds.get(kind, kind)


def _example(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    """A value of `schema`, of the examples and defaults that its fields give."""
    if depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return _example(document, document["components"]["schemas"][name], depth + 1)
    if schema.get("examples"):
        return schema["examples"][0]
    if "default" in schema:
        return schema["default"]
    if "anyOf" in schema:
        return _example(document, schema["anyOf"][0], depth + 1)
    if "properties" in schema:
        return {name: _example(document, field, depth + 1) for name, field in schema["properties"].items()}
    return None
