"""The protos: every declaration has a comment, and compat messages equal the official ones."""

from pathlib import Path

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_tools import protoc

from latentserve.compat.v1 import compat_pb2
from latentserve.v1 import latent_service_pb2 as pb
from tests.support import ROOT

TWINS = [
    (compat_pb2.RpcStatus, status_pb2.Status),
    (compat_pb2.RpcBadRequest, error_details_pb2.BadRequest),
    (compat_pb2.RpcBadRequest.FieldViolation, error_details_pb2.BadRequest.FieldViolation),
    (compat_pb2.RpcErrorInfo, error_details_pb2.ErrorInfo),
    (compat_pb2.HealthRequest, health_pb2.HealthCheckRequest),
    (compat_pb2.HealthResponse, health_pb2.HealthCheckResponse),
]


@pytest.mark.parametrize(("ours", "official"), TWINS)
def test_fields_of_a_compat_message_equal_those_of_the_official_one(ours, official):
    theirs = official.DESCRIPTOR.fields_by_number
    for number, field in ours.DESCRIPTOR.fields_by_number.items():
        assert field.type == theirs[number].type
        assert field.is_repeated == theirs[number].is_repeated
        assert field.name == theirs[number].name


def test_the_compat_health_statuses_have_the_official_numbers():
    official = health_pb2.HealthCheckResponse.ServingStatus
    ours = compat_pb2.HealthResponse.ServingStatus
    for name, number in ours.items():
        short = name.removeprefix("SERVING_STATUS_").replace("UNSPECIFIED", "UNKNOWN")
        assert official.Value(short) == number


def test_every_declaration_of_the_protos_has_a_comment(tmp_path):
    target = tmp_path / "protos.binpb"
    files = sorted(path.relative_to(ROOT / "protos") for path in (ROOT / "protos").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{ROOT / 'protos'}", f"-I{well_known}", "--include_source_info"]
    arguments += [f"--descriptor_set_out={target}", *map(str, files)]
    assert protoc.main(["protoc", *arguments]) == 0
    for file in descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file:
        locations = list(file.source_code_info.location)
        explained = {tuple(place.path) for place in locations if place.leading_comments.strip()}
        declared = {path for path in (tuple(place.path) for place in locations) if _declares(path)}
        assert declared, file.name
        assert declared == declared & explained, file.name


def _declares(path: tuple[int, ...]) -> bool:
    """Whether a source path of descriptor.proto is a declaration that needs a comment."""
    kinds = {4: "message", 5: "enum", 6: "service"}
    inside = {
        "message": {2: "field", 3: "message", 4: "enum", 8: "oneof"},
        "enum": {2: "value"},
        "service": {2: "method"},
    }
    kind: str | None = None
    # A path alternates field numbers and indices.
    for number in path[::2]:
        kind = kinds.get(number)
        if kind is None:
            return False
        kinds = inside.get(kind, {})
    return kind is not None and len(path) % 2 == 0


def test_sampling_fields_whose_zero_is_a_value_have_presence():
    for name in ("seed", "offset", "label", "temperature", "truncation"):
        assert pb.SampleRequest.DESCRIPTOR.fields_by_name[name].has_presence
