"""JSON schemas of the messages of the protos, with their comments."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from docs.make_api import Protos
from docs.openapi.parts import parameter

# Numbers of fields of descriptor.proto: a message's fields, and the messages within it.
_FIELDS, _NESTED = 2, 3
_Type = FieldDescriptorProto.Type
_SCALARS: Final[Mapping[int, dict[str, Any]]] = {
    _Type.TYPE_BOOL: {"type": "boolean"},
    _Type.TYPE_STRING: {"type": "string"},
    _Type.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _Type.TYPE_DOUBLE: {"type": "number"},
    _Type.TYPE_FLOAT: {"type": "number"},
    _Type.TYPE_INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    # As JSON keeps no integers above 2^53.
    _Type.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]{1,19}$"},
    _Type.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]{1,20}$"},
}
_LONG: Final = (_Type.TYPE_INT64, _Type.TYPE_UINT64)

_Found = tuple[FileDescriptorProto, tuple[int, ...], DescriptorProto]


class Schemas:
    """Schemas of messages, made as they are referred to.

    Args:
        protos: Protos of one package.
        plain: Whether JSON has the names of the protos, and 64-bit integers as numbers, as the Open
            Inference Protocol does; if not, it is protobuf's mapping.

    Attributes:
        made: Schemas by name.
    """

    def __init__(self, protos: Protos, *, plain: bool = False):
        self._protos = protos
        self._plain = plain
        self._package = f".{protos.files[0].package}."
        self._messages = dict(_all(protos.messages))
        self.made: dict[str, Any] = {}

    def text(self, rpc: str) -> str:
        """The comment on a method."""
        for _service, method, comment in self._protos.methods():
            if method.name == rpc:
                return "\n\n".join(comment)
        raise LookupError(rpc)

    def of_call(self, rpc: str) -> tuple[str, str]:
        """Names of a method's request and reply; those within the messages of a stream."""
        for _service, method, _comment in self._protos.methods():
            if method.name == rpc:
                names = (method.input_type, method.output_type)
                request, reply = (
                    name.removeprefix(self._package).replace("Stream", "") for name in names
                )
                return request, reply
        raise LookupError(rpc)

    def request(self, name: str, aliases: Mapping[str, str]) -> dict[str, Any]:
        """Schema of the JSON body of a request; its model stands in the path."""
        fields = self.fields(name, without=("model",))
        message = self._messages[f"{self._package}{name}"][2]
        for alias, field_name in aliases.items():
            (field,) = (field for field in message.field if field.name == field_name)
            fields[alias] = fields.pop(self._name(field))
        return {"type": "object", "properties": fields, "additionalProperties": False}

    def fields(
        self, name: str, *, taken: bool = True, without: Collection[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """The members of a message and their schemas.

        Args:
            name: Name of the message in its package.
            taken: Whether they are of a request, which takes more forms than replies have.
            without: Members that are left out.
        """
        comments = self.comments(name)
        message = self._messages[f"{self._package}{name}"][2]
        return {
            member: self._field(message, field, comments[member], taken=taken)
            for field in message.field
            for member in (self._name(field),)
            if member not in without
        }

    def comments(self, name: str) -> dict[str, str]:
        """The comments on the fields of a message, by their names in JSON."""
        file, path, message = self._messages[f"{self._package}{name}"]
        return {
            self._name(field): "\n\n".join(self._protos.comment(file, (*path, _FIELDS, place)))
            for place, field in enumerate(message.field)
        }

    def reference(self, name: str) -> dict[str, Any]:
        """A reference to the schema of a reply."""
        known = f"inference.{name}" if self._plain else name
        if known not in self.made:
            self.made[known] = {}  # messages may refer to each other
            file, path, _message = self._messages[f"{self._package}{name}"]
            self.made[known] = {
                "type": "object",
                "description": "\n\n".join(self._protos.comment(file, path)),
                "properties": self.fields(name, taken=False),
            }
        return {"$ref": f"#/components/schemas/{known}"}

    def parameters(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the query parameters of the fields of a request."""
        comments = self.comments(name)
        message = self._messages[f"{self._package}{name}"][2]
        for field in message.field:
            if field.type in (_Type.TYPE_MESSAGE, _Type.TYPE_STRING, _Type.TYPE_BYTES):
                continue
            schema = self._field(message, field, "", taken=True)
            text = comments[self._name(field)]
            # Values of one parameter have commas between them.
            commas = {"explode": False} if _is_repeated(field) else {}
            yield parameter(field.name, schema, text, **commas)

    def _name(self, field: FieldDescriptorProto) -> str:
        return field.name if self._plain else field.json_name

    def _field(
        self,
        message: DescriptorProto,
        field: FieldDescriptorProto,
        comment: str,
        *,
        taken: bool,
    ) -> dict[str, Any]:
        schema = self._type(message, field, taken=taken)
        if _is_repeated(field) and "additionalProperties" not in schema:
            schema = {"type": "array", "items": schema}
        return {**schema, "description": comment} if comment else schema

    def _type(
        self, message: DescriptorProto, field: FieldDescriptorProto, *, taken: bool
    ) -> dict[str, Any]:
        for entry in message.nested_type:
            if entry.options.map_entry and field.type_name.endswith(f".{entry.name}"):
                value = self._type(entry, entry.field[1], taken=taken)
                return {"type": "object", "additionalProperties": value}
        if field.type == _Type.TYPE_ENUM:
            return self._enum(field.type_name, taken=taken)
        if field.type != _Type.TYPE_MESSAGE:
            return self._scalar(field, taken=taken)
        name = field.type_name.removeprefix(self._package)
        if field.type_name == ".google.protobuf.Timestamp":
            return {"type": "string", "format": "date-time"}
        if name in ("Tensor", "Images"):
            lists = {"type": "array", "description": "Nested lists, up to 64 KiB as an array."}
            return {"anyOf": [lists, self.reference(name)]}
        return self.reference(name)

    def _scalar(self, field: FieldDescriptorProto, *, taken: bool) -> dict[str, Any]:
        schema = dict(_SCALARS[field.type])
        if field.type not in _LONG:
            return schema
        low = 0 if field.type == _Type.TYPE_UINT64 else -(2**53)
        number = {"type": "integer", "minimum": low, "maximum": 2**53}
        if self._plain:
            return number
        return {"anyOf": [schema, number]} if taken else schema

    def _enum(self, type_name: str, *, taken: bool) -> dict[str, Any]:
        for file in self._protos.files:
            for enum in file.enum_type:
                if f".{file.package}.{enum.name}" == type_name:
                    names = [value.name for value in enum.value]
                    prefix = names[0].removesuffix("UNSPECIFIED")
                    short = [name.removeprefix(prefix).lower() for name in names]
                    return {"type": "string", "enum": [*short, *names] if taken else names}
        raise LookupError(type_name)


def _is_repeated(field: FieldDescriptorProto) -> bool:
    return field.label == FieldDescriptorProto.LABEL_REPEATED


def _all(messages: Mapping[str, _Found]) -> Iterator[tuple[str, _Found]]:
    """Yields messages, and the messages within them, by full name."""
    for name, (file, path, message) in messages.items():
        yield name, (file, path, message)
        within: dict[str, _Found] = {
            f"{name}.{nested.name}": (file, (*path, _NESTED, place), nested)
            for place, nested in enumerate(message.nested_type)
        }
        yield from _all(within)
