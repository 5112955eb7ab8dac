"""docs/api.md: up to date with the protos, complete, and well-formed."""

import re
from types import ModuleType

import pytest

from docs.make_api import FILES, PAGE, read_protos, render
from latentserve.v1 import admin_service_pb2, latent_service_pb2, tensor_pb2
from tests.support import ROOT

MODULES = [latent_service_pb2, tensor_pb2, admin_service_pb2]

page = PAGE.read_text()


def section(title: str) -> str:
    """Text under a heading, up to the next heading of its level or above."""
    (found,) = re.findall(rf"^###? {title}$(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    return found


def test_the_api_page_is_up_to_date_with_the_protos() -> None:
    assert render(read_protos()) == page, "stale: make docs"


def test_the_api_page_covers_every_proto() -> None:
    protos = ROOT / "protos"
    assert {str(path.relative_to(protos)) for path in protos.glob("latentserve/v1/*")} == set(FILES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_api_page_has_every_rpc_field_and_enum_value(module: ModuleType) -> None:
    carried = set()
    for service in module.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert f"| [`{method.name}`](#{method.name.lower()}) |" in section("RPCs")
            for message in (method.input_type, method.output_type):
                carried.add(message.name)
                assert f"`{message.name}`" in section(method.name)
                for field in message.fields:
                    assert f"\n| `{field.name}` | " in section(method.name), message.name
    for name, message in module.DESCRIPTOR.message_types_by_name.items():
        if name not in carried:
            for field in message.fields:
                assert f"\n| `{field.name}` | " in section(name)
    for name, enum in module.DESCRIPTOR.enum_types_by_name.items():
        for value in enum.values:
            assert f"\n| `{value.name}` | {value.number} | " in section(name)


def test_the_api_page_marks_streams_optional_fields_oneofs_and_maps() -> None:
    assert "| [`EncodeStream`](#encodestream) | streams both ways |" in page
    assert "| [`SampleStream`](#samplestream) | streams replies |" in page
    assert "**Request**: `SampleStreamRequest`. " in page
    assert "**Reply**: stream of `SampleStreamResponse`. " in page
    assert "| `seed` | uint64, optional |" in section("Sample")
    assert "| `seed` | uint64 |" in section("Sample")
    assert "| *ends* | one of `latents`, `images` | The two ends. Required. |" in page
    assert "| `metrics` | map of string to double |" in page


def test_tables_of_the_api_page_are_rectangular_without_empty_cells() -> None:
    columns = 0
    for line in page.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else []
        if cells and columns:
            assert len(cells) == columns, line
        columns = len(cells)
        assert all(cell.strip() for cell in cells), line


def test_links_of_the_api_page_resolve() -> None:
    def anchors(text: str) -> set[str]:
        return {
            title.lower().replace(" ", "-")
            for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }

    links = re.findall(r"\]\(([^)]*)\)", page)
    assert len(links) > 50
    for link in links:
        name, _, anchor = link.partition("#")
        path = PAGE.parent / name if name else PAGE
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text()), link
