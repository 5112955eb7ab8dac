"""docs/api.md: made from the protos as they are, complete, and whole as a page."""

import re
from types import ModuleType

import pytest

from docs.make_api import FILES, PAGE, read_protos, render
from latentserve.v1 import admin_service_pb2, latent_service_pb2, tensor_pb2
from tests.support import ROOT

MODULES = [latent_service_pb2, tensor_pb2, admin_service_pb2]

page = PAGE.read_text()


def section(title: str) -> str:
    """What stands under a heading."""
    (found,) = re.findall(rf"^###? {title}$(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    return found


def test_the_page_is_what_the_protos_say() -> None:
    assert render(read_protos()) == page, "stale: make docs"


def test_every_proto_of_the_api_is_in_it() -> None:
    protos = ROOT / "protos"
    assert {str(path.relative_to(protos)) for path in protos.glob("latentserve/v1/*")} == set(FILES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_rpc_message_and_value_has_its_place(module: ModuleType) -> None:
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


def test_streams_and_optional_fields_are_told_from_others() -> None:
    assert "| [`EncodeStream`](#encodestream) | streams both ways |" in page
    assert "| [`SampleStream`](#samplestream) | streams replies |" in page
    assert "**Request**: `SampleStreamRequest`. " in page
    assert "**Reply**: stream of `SampleStreamResponse`. " in page
    assert "| `seed` | uint64, optional |" in section("Sample")
    assert "| `seed` | uint64 |" in section("Sample")
    assert "| *ends* | one of `latents`, `images` | The two ends. Required. |" in page
    assert "| `metrics` | map of string to double |" in page


def test_no_table_is_broken_and_nothing_is_left_empty() -> None:
    columns = 0
    for line in page.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else []
        if cells and columns:
            assert len(cells) == columns, line
        columns = len(cells)
        assert all(cell.strip() for cell in cells), line


def test_every_link_leads_somewhere() -> None:
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
