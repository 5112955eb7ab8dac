"""Writes docs/api.md from the comments of the protos: `make docs`."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
# In the order of the page. The compat package is private to the Python client.
FILES = tuple(
    f"latentserve/v1/{name}.proto" for name in ("latent_service", "tensor", "admin_service")
)

_INTRODUCTION = """\
# The API

<!-- Made from the comments of the protos by `make docs`: edit those, not this page. -->

The RPCs, messages and enums of [`protos/latentserve/v1`](../protos/latentserve/v1). There are
clients in [Python](python.md) and [JavaScript](../examples/node); protoc generates stubs for other
languages from the same files. Which status means what: [operations.md](operations.md#errors)."""

# Field numbers of descriptor.proto: a comment is found by the path of fields and indexes to it.
_PACKAGE, _MESSAGES, _ENUMS, _SERVICES = 2, 4, 5, 6
_FIELDS, _ONEOFS, _PARTS = 2, 8, 2

_Path = tuple[int, ...]


class Protos:
    """Declarations of the protos and the comments on them.

    Args:
        files: Compiled files, with source info.
    """

    def __init__(self, files: Sequence[FileDescriptorProto]):
        self.files = files
        self._comments = {
            (file.name, tuple(location.path)): location.leading_comments
            for file in files
            for location in file.source_code_info.location
        }
        self.messages = {
            f".{file.package}.{message.name}": (file, (_MESSAGES, place), message)
            for file in files
            for place, message in enumerate(file.message_type)
        }

    def methods(self) -> Iterator[tuple[str, MethodDescriptorProto, list[str]]]:
        """Yields the service, the method and the comment of each RPC."""
        for file in self.files:
            for place, service in enumerate(file.service):
                for part, method in enumerate(service.method):
                    path = (_SERVICES, place, _PARTS, part)
                    yield service.name, method, self.comment(file, path)

    def comment(self, file: FileDescriptorProto, path: _Path) -> list[str]:
        """Returns the paragraphs of a comment, one line each."""
        text = self._comments.get((file.name, path), "")
        return [
            " ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()
        ]


def read_protos(names: Sequence[str] = FILES) -> Protos:
    """Compiles protos, by default those of the page."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "protos.binpb")
        sources = [ROOT / "protos", Path(grpc_tools.__file__).parent / "_proto"]
        arguments = [*(f"-I{source}" for source in sources), f"--descriptor_set_out={target}"]
        if protoc.main(["protoc", "--include_source_info", *arguments, *names]) != 0:
            raise SystemExit("docs/make_api.py: the protos do not compile")
        files = FileDescriptorSet.FromString(target.read_bytes()).file
    return Protos(sorted(files, key=lambda file: names.index(file.name)))


def render(protos: Protos) -> str:
    """Returns the page, in Markdown."""
    parts = [_INTRODUCTION, "## Conventions", *_texts(protos.comment(protos.files[0], (_PACKAGE,)))]
    parts += ["## RPCs", _table(("RPC", "kind", "what it does"), _summary(protos))]
    carried = set()
    for file in protos.files:
        for place, service in enumerate(file.service):
            parts += [f"## {service.name}", *_texts(protos.comment(file, (_SERVICES, place)))]
            if file is not protos.files[0]:
                parts += _texts(protos.comment(file, (_PACKAGE,)))
            for name, method, comment in protos.methods():
                if name == service.name:
                    parts += [f"### {method.name}", *_texts(comment)]
                    parts += _side(protos, "Request", method.input_type, method.client_streaming)
                    parts += _side(protos, "Reply", method.output_type, method.server_streaming)
                    carried |= {method.input_type, method.output_type}
    parts.append("## Messages")
    for name, (file, path, message) in protos.messages.items():
        if name not in carried:
            parts += [f"### {message.name}", *_texts(protos.comment(file, path))]
            parts += _fields(protos, file, path, message)
    parts.append("## Enums")
    for file in protos.files:
        for place, enum in enumerate(file.enum_type):
            path = (_ENUMS, place)
            parts += [f"### {enum.name}", *_texts(protos.comment(file, path))]
            parts.append(_table(("value", "number", "meaning"), _values(protos, file, path, enum)))
    return "\n\n".join(parts) + "\n"


def _summary(protos: Protos) -> Iterator[tuple[str, ...]]:
    kinds = {(True, True): "streams both ways", (False, True): "streams replies"}
    for _, method, comment in protos.methods():
        kind = kinds.get((method.client_streaming, method.server_streaming), "unary")
        first = comment[0].split(". ")[0].removesuffix(".") if comment else ""
        yield _link(method.name), kind, _plain(first)


def _side(protos: Protos, title: str, name: str, stream: bool) -> list[str]:
    file, path, message = protos.messages[name]
    what = f"stream of `{message.name}`" if stream else f"`{message.name}`"
    first, *rest = _texts(protos.comment(file, path)) or [""]
    return [f"**{title}**: {what}. {first}", *rest, *_fields(protos, file, path, message)]


def _fields(
    protos: Protos, file: FileDescriptorProto, path: _Path, message: DescriptorProto
) -> list[str]:
    rows: list[tuple[str, ...]] = []
    seen = set()
    for place, field in enumerate(message.field):
        if field.HasField("oneof_index") and not field.proto3_optional:
            choice = field.oneof_index
            if choice not in seen:
                seen.add(choice)
                names = [f"`{other.name}`" for other in message.field if _is_of(other, choice)]
                comment = protos.comment(file, (*path, _ONEOFS, choice))
                name = f"*{message.oneof_decl[choice].name}*"
                rows.append((name, f"one of {', '.join(names)}", _cell(comment)))
        comment = protos.comment(file, (*path, _FIELDS, place))
        rows.append((f"`{field.name}`", _type(protos, message, field), _cell(comment)))
    return [_table(("field", "type", "meaning"), rows)] if rows else []


def _is_of(field: FieldDescriptorProto, choice: int) -> bool:
    return field.HasField("oneof_index") and field.oneof_index == choice


def _type(protos: Protos, message: DescriptorProto, field: FieldDescriptorProto) -> str:
    for entry in message.nested_type:
        if entry.options.map_entry and field.type_name.endswith(f".{message.name}.{entry.name}"):
            key, value = (_type(protos, entry, part) for part in entry.field)
            return f"map of {key} to {value}"
    name = field.type_name.rpartition(".")[2]
    if not name:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    elif not field.type_name.startswith(f".{protos.files[0].package}."):
        name = f"`{field.type_name[1:]}`"
    else:
        # The request and the reply of an RPC are described under its heading.
        name = _link(name, _home(protos, field.type_name))
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"{name}, optional" if field.proto3_optional else name


def _home(protos: Protos, type_name: str) -> str:
    for _, method, _ in protos.methods():
        if type_name in (method.input_type, method.output_type):
            return method.name
    return type_name.rpartition(".")[2]


def _values(
    protos: Protos, file: FileDescriptorProto, path: _Path, enum: EnumDescriptorProto
) -> Iterator[tuple[str, ...]]:
    for place, value in enumerate(enum.value):
        comment = protos.comment(file, (*path, _PARTS, place))
        yield f"`{value.name}`", str(value.number), _cell(comment)


def _link(name: str, heading: str | None = None) -> str:
    return f"[`{name}`](#{(heading or name).lower()})"


def _texts(paragraphs: Iterable[str]) -> list[str]:
    return [_plain(paragraph) for paragraph in paragraphs]


def _cell(paragraphs: Iterable[str]) -> str:
    return "<br>".join(_texts(paragraphs))


def _plain(text: str) -> str:
    """Escapes Markdown in a text, except for code in backticks."""
    parts = text.split("`")
    for mark in "\\*<~":
        parts[::2] = [part.replace(mark, f"\\{mark}") for part in parts[::2]]
    return "`".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines
    )


if __name__ == "__main__":
    PAGE.write_text(render(read_protos()))
