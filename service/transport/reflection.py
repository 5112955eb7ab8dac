"""gRPC server reflection, for grpcurl and similar tools: `grpc.reflection.v1` and `v1alpha`.

The two versions have the same messages. Those of the grpcio-reflection package, which has only
v1alpha, are used for both.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from service.dispatch.rpc import Rpc
from service.engine.call import Call
from service.errors import Status

_ALPHA: Final = "grpc.reflection.v1alpha"
_STABLE: Final = "grpc.reflection.v1"
_SERVICE: Final = "ServerReflection"


def reflection_rpcs(names: Iterable[str]) -> list[Rpc]:
    """Returns the method `ServerReflectionInfo` of both versions.

    Args:
        names: Full names of the other services.
    """
    services = [f"{package}.{_SERVICE}" for package in (_STABLE, _ALPHA)]
    reflection = _Reflection(sorted((*names, *services)))
    return [
        Rpc(
            service,
            "ServerReflectionInfo",
            reflection.answer,
            pb.ServerReflectionRequest,
            takes_stream=True,
            gives_stream=True,
            counted=False,
        )
        for service in services
    ]


class _Reflection:
    """Answers from the descriptors that protobuf has loaded.

    Args:
        names: Full names of all services.
    """

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._pool = descriptor_pool.Default()
        # A separate pool, so that the v1 descriptors are not added to the process's default pool.
        self._stable = descriptor_pool.DescriptorPool()
        self._stable.Add(_stable_file())

    async def answer(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], _call: Call
    ) -> AsyncGenerator[pb.ServerReflectionResponse, None]:
        """Answers each request of a stream; if nothing is found, the response has an error."""
        async for request in requests:
            response = pb.ServerReflectionResponse(
                valid_host=request.host, original_request=request
            )
            try:
                self._fill(response, request)
            except KeyError as error:
                # protobuf's message says what was not found.
                response.error_response.error_code = Status.NOT_FOUND
                response.error_response.error_message = str(error.args[0])
            yield response

    def _fill(
        self, response: pb.ServerReflectionResponse, request: pb.ServerReflectionRequest
    ) -> None:
        """Sets the answer of a response.

        Raises:
            KeyError: There is no such file, symbol, type or extension.
        """
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            services = response.list_services_response.service
            services.extend(pb.ServiceResponse(name=name) for name in self._names)
        elif kind == "file_by_filename":
            _put_files(response, self._file(request.file_by_filename))
        elif kind == "file_containing_symbol":
            _put_files(response, self._file_of(request.file_containing_symbol))
        elif kind == "file_containing_extension":
            wanted = request.file_containing_extension
            extended = self._pool.FindMessageTypeByName(wanted.containing_type)
            extension = self._pool.FindExtensionByNumber(extended, wanted.extension_number)
            _put_files(response, self._pool.FindFileContainingSymbol(extension.full_name))
        elif kind == "all_extension_numbers_of_type":
            extended = self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
            numbers = response.all_extension_numbers_response
            numbers.base_type_name = extended.full_name
            numbers.extension_number.extend(
                sorted(found.number for found in self._pool.FindAllExtensions(extended))
            )
        else:
            response.error_response.error_code = Status.INVALID_ARGUMENT
            response.error_response.error_message = "message_request: got none of its fields"

    def _file(self, name: str) -> FileDescriptor:
        try:
            return self._stable.FindFileByName(name)
        except KeyError:
            return self._pool.FindFileByName(name)

    def _file_of(self, symbol: str) -> FileDescriptor:
        """The file that defines a symbol, which may be a method or a field."""
        for pool in (self._stable, self._pool):
            with suppress(KeyError):
                return pool.FindFileContainingSymbol(symbol)
            # Pools index neither methods nor fields by file.
            with suppress(KeyError):
                return pool.FindMethodByName(symbol).containing_service.file
            with suppress(KeyError):
                parent = pool.FindFieldByName(symbol).containing_type
                if parent is not None:
                    return parent.file
        raise KeyError(f"Couldn't find symbol {symbol}")


def _stable_file() -> FileDescriptorProto:
    """Descriptor of the v1 file: a copy of v1alpha's with the package name of v1."""
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = _STABLE
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(_ALPHA, _STABLE)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(_ALPHA, _STABLE)
        method.output_type = method.output_type.replace(_ALPHA, _STABLE)
    return file


def _put_files(response: pb.ServerReflectionResponse, file: FileDescriptor) -> None:
    """Adds a file, and all files that it imports, to a response."""
    found: dict[str, FileDescriptor] = {}
    _collect(file, found)
    response.file_descriptor_response.file_descriptor_proto.extend(_serialized(found.values()))


def _collect(file: FileDescriptor, found: dict[str, FileDescriptor]) -> None:
    found[file.name] = file
    for imported in file.dependencies:
        if imported.name not in found:
            _collect(imported, found)


def _serialized(files: Iterable[FileDescriptor]) -> Iterable[bytes]:
    for file in files:
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        yield proto.SerializeToString()
