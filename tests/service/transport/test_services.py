"""The services beside our own: health with List, reflection, methods without a handler."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from latentserve.v1 import latent_service_pb2 as pb
from service.engine.call import Call
from service.errors import Unauthenticated
from tests.support.transports import (
    FACTORIES,
    Handlers,
    both_streams,
    loaded,
    server_stream,
    serving,
    unary,
)

LATENT = "latentserve.v1.LatentService"
SERVING, NOT_SERVING = 1, 2
NOT_FOUND = 5


@pytest.fixture(params=list(FACTORIES))
def kind(request: pytest.FixtureRequest) -> str:
    """One transport, and then the other."""
    return str(request.param)


def list_response() -> Any:
    """Class of grpc.health.v1.HealthListResponse, whichever grpcio-health-checking there is."""
    file = descriptor_pb2.FileDescriptorProto(
        name="list.proto", package="test", dependency=[health_pb2.DESCRIPTOR.name]
    )
    message = file.message_type.add(name="HealthListResponse")
    entry = message.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    status = ".grpc.health.v1.HealthCheckResponse"
    entry.field.add(name="value", number=2, type=11, label=1, type_name=status)
    name = ".test.HealthListResponse.StatusesEntry"
    message.field.add(name="statuses", number=1, type=11, label=3, type_name=name)
    pool = descriptor_pool.DescriptorPool()
    health = descriptor_pb2.FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(health)
    pool.Add(health)
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("test.HealthListResponse"))


async def test_health_lists_the_status_of_every_service(kind: str) -> None:
    async with serving(kind, Handlers()) as running, running.channel() as channel:
        for wanted in (NOT_SERVING, SERVING):
            reply = await unary(channel, "/grpc.health.v1.Health/List")(b"", timeout=5)
            statuses = list_response().FromString(reply).statuses
            names = {"", LATENT} | ({f"{LATENT}/one"} if wanted == SERVING else set())
            assert {name: status.status for name, status in statuses.items()} == dict.fromkeys(
                names, wanted
            )
            await running.transport.show(loaded())


@pytest.mark.parametrize("letter", ["x", "模"])
async def test_health_quotes_no_more_than_clients_accept(kind: str, letter: str) -> None:
    async with serving(kind, Handlers()) as running, running.channel() as channel:
        request = health_pb2.HealthCheckRequest(service=letter * 1000).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/grpc.health.v1.Health/Check")(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        wanted = f"service: got '{letter * 99}... (1002 characters), wanted '', '{LATENT}'"
        assert caught.value.details() == wanted


@pytest.mark.parametrize("method", ["Encode", "SampleStream", "EncodeStream"])
async def test_a_method_without_a_handler_is_unimplemented(kind: str, method: str) -> None:
    """As one that a newer package than ours defines for a service."""
    async with serving(kind, Handlers()) as running, running.channel() as channel:
        if method == "Encode":
            call = unary(channel, method)(b"", timeout=5)
        elif method == "SampleStream":
            call = server_stream(channel, method)(b"", timeout=5)
        else:
            call = both_streams(channel, method)(timeout=5)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "does not have" in await call.details()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_finds_files_services_methods_and_fields(kind: str, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    requests = [
        *(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
            for symbol in (
                LATENT,
                f"{LATENT}.Sample",
                "latentserve.v1.SampleRequest",
                "latentserve.v1.SampleRequest.count",
                f"grpc.reflection.{version}.ServerReflection.ServerReflectionInfo",
            )
        ),
        reflection_pb2.ServerReflectionRequest(file_by_filename=pb.DESCRIPTOR.name),
    ]
    wrong = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{LATENT}.Nothing"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="nothing.proto"),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="x.Nothing"),
    ]
    names = reflection_pb2.ServerReflectionRequest(list_services="*")

    async def sent() -> AsyncIterator[bytes]:
        for request in (*requests, *wrong, names):
            yield request.SerializeToString()

    async with (
        serving(kind, Handlers(), reflection=True) as running,
        running.channel() as channel,
    ):
        call = both_streams(channel, path)(sent(), timeout=5)
        replies = [reflection_pb2.ServerReflectionResponse.FromString(raw) async for raw in call]
    pool_of_client = descriptor_pool.DescriptorPool()
    for request, reply in zip(requests, replies, strict=False):
        assert reply.original_request == request
        files = reply.file_descriptor_response.file_descriptor_proto
        # As a client does: what a file imports is there as well.
        for blob in reversed(files):
            pool_of_client.AddSerializedFile(blob)
    assert pool_of_client.FindMethodByName(f"{LATENT}.Sample").input_type.name == "SampleRequest"
    assert pool_of_client.FindServiceByName(f"grpc.reflection.{version}.ServerReflection")
    for reply in replies[len(requests) : -1]:
        assert reply.error_response.error_code == NOT_FOUND
    listed = [service.name for service in replies[-1].list_services_response.service]
    assert listed == sorted(listed)
    assert {
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } < set(listed)


@pytest.mark.parametrize("name", ["batch-jobs", ""])
async def test_a_caller_is_the_name_of_its_token_or_its_address(kind: str, name: str) -> None:
    async def caller(_request: Any, call: Call) -> tuple[bytes]:
        return (call.caller.encode(),)

    def authenticate(authorization: str | None) -> str:
        if authorization is None:
            raise Unauthenticated("no token")
        return name

    async with (
        serving(kind, Handlers(list_models=caller), authenticate=authenticate) as running,
        running.channel() as channel,
    ):
        method = unary(channel, "ListModels")
        reply = await method(b"", timeout=5, metadata=(("authorization", "Bearer x"),))
        assert reply.decode() == (name or "ipv4:127.0.0.1")
        assert await method(b"", timeout=5).code() is grpc.StatusCode.UNAUTHENTICATED
