from latentserve.v1 import latent_service_pb2 as _latent_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("serving", "added", "removed", "refused")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    serving: _containers.RepeatedCompositeFieldContainer[_latent_service_pb2.ModelIdentity]
    added: _containers.RepeatedCompositeFieldContainer[_latent_service_pb2.ModelIdentity]
    removed: _containers.RepeatedCompositeFieldContainer[_latent_service_pb2.ModelIdentity]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedModel]
    def __init__(self, serving: _Optional[_Iterable[_Union[_latent_service_pb2.ModelIdentity, _Mapping]]] = ..., added: _Optional[_Iterable[_Union[_latent_service_pb2.ModelIdentity, _Mapping]]] = ..., removed: _Optional[_Iterable[_Union[_latent_service_pb2.ModelIdentity, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[RefusedModel, _Mapping]]] = ...) -> None: ...

class RefusedModel(_message.Message):
    __slots__ = ("name", "version", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    problem: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...
