"""Writes the gateway's openapi.json and its page from the protos and the routes: `make docs`."""

import json
from typing import Any, Final

import latentserve
from docs.make_api import ROOT, read_protos
from docs.openapi import diffusers, inference
from docs.openapi.messages import Schemas
from docs.openapi.models import Models
from docs.openapi.page import page
from docs.openapi.parts import ANY, failures, operation, problem, reply
from service.gateway.pages import FILES

DOCUMENT = ROOT / "service" / "gateway" / "openapi.json"
PAGE = ROOT / "service" / "gateway" / "api.html"

_INFERENCE: Final = ("inference/inference_service.proto",)


def document() -> dict[str, Any]:
    """Returns the OpenAPI document (version 3.1)."""
    schemas, of_inference = Schemas(read_protos()), Schemas(read_protos(_INFERENCE), plain=True)
    models = Models(schemas)
    paths = {
        **dict(models.paths()),
        **dict(inference.paths(of_inference)),
        **dict(diffusers.paths(schemas)),
    }
    for path, (name, media, text) in FILES.items():
        success = reply(text, {media: {}})
        paths[path] = {"get": operation(name, text, [], ANY, success=success)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "latentserve",
            "version": latentserve.__version__,
            "description": "Variational autoencoders behind HTTP: encode images to latents, decode "
            "latents to images, sample new ones, and more.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas.made, **of_inference.made, "Problem": problem()},
            **models.shared,
            "responses": failures(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
        "security": [{}, {"bearer": []}, {"basic": []}],
    }


def main() -> None:
    """Writes both files."""
    made = document()
    DOCUMENT.write_text(json.dumps(made, indent=1) + "\n")
    PAGE.write_text(page(made))


if __name__ == "__main__":
    main()
