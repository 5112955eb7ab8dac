"""Which kind of source a path is, told by its content: no code is run, no pickle is opened."""

import importlib
from pathlib import Path
from types import ModuleType

from export.errors import ExportError

#: The kinds in the order they are tried. Each module has `find(path) -> bool` and
#: `load(path, options) -> Imported`; the packages it needs are imported by `load` alone.
KINDS = {
    "torch": "export.sources.torch_module",
    "diffusers": "export.sources.diffusers",
    "pythae": "export.sources.pythae",
    "taesd": "export.sources.taesd",
    "onnx": "export.sources.onnx",
}


def source_module(path: Path, kind: str = "auto") -> tuple[str, ModuleType]:
    """Finds the module that reads a source.

    Args:
        path: The source.
        kind: A key of `KINDS`, or `auto` to tell it by the content.

    Returns:
        The kind and its module.

    Raises:
        ExportError: There is nothing at the path, or nothing that can be imported.
    """
    if kind != "auto":
        return kind, importlib.import_module(KINDS[kind])
    for name, module in KINDS.items():
        found = importlib.import_module(module)
        if found.find(path):
            return name, found
    if not path.exists():
        raise ExportError(f"{path}: there is no such file or folder")
    raise ExportError(
        f"{path}: holds no model that can be imported; wanted a config.json of diffusers, a "
        "model_config.json of pythae, *_encoder.pth and *_decoder.pth of TAESD, encoder.onnx and "
        "decoder.onnx, or FILE.py:FACTORY"
    )
