"""The page of the HTTP API for people: plain HTML without scripts."""

import html
import textwrap
from collections.abc import Mapping
from typing import Any


def page(made: Mapping[str, Any]) -> str:
    """Returns the page for people: plain HTML without scripts."""
    parts = []
    for path, methods in made["paths"].items():
        if "{version}" in path:
            continue
        for method, operation in methods.items():
            rows = "".join(
                f"<tr><td><code>{_text(parameter['name'])}</code></td>"
                f"<td>{_text(parameter['description'])}</td></tr>"
                for parameter in (_found(made, one) for one in operation["parameters"])
                if parameter["in"] == "query"
            )
            body = _found(made, operation.get("requestBody", {}))
            bodies = ", ".join(body.get("content", ()))
            replies = ", ".join(operation["responses"]["200"].get("content", ()))
            parts.append(
                f"<section><h2><code><b>{method.upper()}</b> {_text(path)}</code></h2>"
                f"<p>{_text(operation['description'])}</p>"
                + (f"<p>Body: {_text(bodies)}.</p>" if bodies else "")
                + f"<p>Reply: {_text(replies)}.</p>"
                + (
                    f"<details><summary>Parameters</summary><table>{rows}</table></details>"
                    if rows
                    else ""
                )
                + "</section>"
            )
    return _PAGE.replace("@SECTIONS@", "\n".join(parts)).replace(
        "@VERSION@", made["info"]["version"]
    )


def _found(made: Mapping[str, Any], one: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference refers to; anything else is itself."""
    if "$ref" not in one:
        return one
    _, components, kind, name = one["$ref"].split("/")
    found: Mapping[str, Any] = made[components][kind][name]
    return found


def _text(text: str) -> str:
    return html.escape(text).replace("\n\n", "<br>")


_PAGE = textwrap.dedent("""\
    <!doctype html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>latentserve: the HTTP API</title>
    <link rel="stylesheet" href="/api.css">
    </head>
    <body>
    <main>
    <h1>latentserve @VERSION@: the HTTP API</h1>
    <p>Every model, one address: <code>/v1/models/MODEL:OPERATION</code>, or
    <code>/v1/models/MODEL/versions/VERSION:OPERATION</code> for a version of it. The same as a
    document for programs: <a href="/openapi.json">/openapi.json</a>.</p>
    <pre>curl -o sevens.png 'localhost:8000/v1/models/mnist:sample?count=20&amp;label=7&amp;seed=7'
    curl --data-binary @digit.png -H 'content-type: image/png' \\
      localhost:8000/v1/models/mnist:score</pre>
    @SECTIONS@
    </main>
    </body>
    </html>
    """)
