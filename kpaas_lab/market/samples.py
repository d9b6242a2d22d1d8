"""Requests to copy: the example of a listing for curl, for any Python, and for a notebook of the lab."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

INLINE = 1200  # characters; a longer example is a file to download


def compact(example: Mapping[str, Any]) -> str:
    """The example on one line."""
    return json.dumps(example, ensure_ascii=False, separators=(",", ":"))


def pretty(example: Mapping[str, Any]) -> str:
    """The example for an editor: objects indented, arrays of numbers on one line.

    Example:
        >>> print(pretty({"inputs": [{"name": "x", "data": [1, 2]}]}))
        {
          "inputs": [
            {
              "name": "x",
              "data": [1, 2]
            }
          ]
        }
    """
    return _pretty(example, "")


def _pretty(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        items = (f"{deeper}{json.dumps(str(k), ensure_ascii=False)}: {_pretty(v, deeper)}" for k, v in value.items())
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return "[\n" + ",\n".join(deeper + _pretty(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def curl(url: str, model: str, example: Mapping[str, Any]) -> str:
    r"""For a shell, with the key in $KPAAS_LAB_KEY so that it stays out of the shell's history.

    Example:
        >>> print(curl("http://lab/services/api/ann/digits", "digits", {"inputs": []}))
        curl http://lab/services/api/ann/digits/v2/models/digits/infer \
          -H "Authorization: Bearer $KPAAS_LAB_KEY" \
          -H "Content-Type: application/json" \
          -d '{"inputs":[]}'
    """
    body = compact(example)
    data = shlex.quote(body) if len(body) <= INLINE else "@example.json"
    lines = (
        f"curl {shlex.quote(infer_url(url, model))}",
        '-H "Authorization: Bearer $KPAAS_LAB_KEY"',
        '-H "Content-Type: application/json"',
        f"-d {data}",
    )
    return " \\\n  ".join(lines)


def python(url: str, model: str, example: Mapping[str, Any]) -> str:
    """For any Python with `requests`."""
    short = len(compact(example)) <= INLINE
    data = repr(dict(example)) if short else 'json.load(open("example.json"))'
    return (
        ("import os\n\n" if short else "import json\nimport os\n\n") + "import requests\n\n"
        "answer = requests.post(\n"
        f"    {infer_url(url, model)!r},\n"
        '    headers={"Authorization": "Bearer " + os.environ["KPAAS_LAB_KEY"]},\n'
        f"    json={data},\n"
        "    timeout=60,\n"
        ")\n"
        "answer.raise_for_status()\n"
        'print(answer.json()["outputs"])\n'
    )


def notebook(publisher: str, name: str, plan: str) -> str:
    """For a notebook of the lab, where the key is kept in one's own store."""
    return (
        "from kpaas_lab import Lab\n\n"
        f"api = Lab().subscribe({f'{publisher}/{name}'!r}, plan={plan!r})\n"
        "api.predict(array)\n"
    )


def infer_url(url: str, model: str) -> str:
    """Where a listing's model is called."""
    return f"{url}/v2/models/{model}/infer"
