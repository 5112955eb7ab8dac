"""The manifests in deploy/kubernetes/: rendered by kubectl, validated against schemas."""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT
from tests.support.environments import python_with

KUBERNETES = ROOT / "deploy" / "kubernetes"
#: The oldest version with preStop's `sleep` and gRPC probes on by default, one between, the newest.
VERSIONS = ("1.30", "1.34", "1.37")
#: Schemas of custom kinds, KIND-GROUP-VERSION.json: see the README there.
SCHEMAS = ROOT / "tests" / "deploy" / "schemas"
_SECONDS = 120.0
_REQUIREMENTS = ("kubernetes-validate==1.37.0", "jsonschema==4.26.0")
# Runs where jsonschema is: reads pairs of a document and a schema, prints what is wrong with each.
_CHECK = """
import json, sys
from jsonschema import Draft202012Validator
def problems(document, schema):
    Draft202012Validator.check_schema(schema)
    errors = Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]
print(json.dumps([problems(*pair) for pair in json.load(sys.stdin)]))
"""

Document = dict[str, Any]


def kustomizations() -> list[str]:
    """What can be applied: `base` and the overlays, relative to deploy/kubernetes/."""
    found = (file.parent for file in KUBERNETES.glob("overlays/*/kustomization.yaml"))
    return ["base", *sorted(f"overlays/{folder.name}" for folder in found)]


@functools.cache
def rendered(folder: str | Path) -> str:
    """The YAML that `kubectl kustomize` makes of a folder; skips the test without kubectl.

    Args:
        folder: Absolute, or relative to deploy/kubernetes/.
    """
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl, which renders the manifests")
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / folder],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    # Of what is deprecated, kustomize warns on stderr.
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def documents(folder: str | Path) -> list[Document]:
    """The documents that `rendered` has."""
    return [document for document in yaml.safe_load_all(rendered(folder)) if document]


def one(folder: str | Path, kind: str, name: str = "") -> Document:
    """The document of a kind, and of a name where there are several of that kind."""
    found = [
        document
        for document in documents(folder)
        if document["kind"] == kind and name in ("", document["metadata"]["name"])
    ]
    assert len(found) == 1, f"{folder}: {len(found)} of {kind} {name}"
    return found[0]


def container(folder: str | Path) -> Document:
    """The server's container in the Deployment."""
    (found,) = one(folder, "Deployment", "latentserve")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(folder: str | Path) -> dict[str, str]:
    """The variables of the server's container: the ConfigMap's, then its own."""
    deployed = container(folder)
    (source,) = deployed["envFrom"]
    from_map = one(folder, "ConfigMap", source["configMapRef"]["name"])["data"]
    return {**from_map, **{entry["name"]: entry["value"] for entry in deployed.get("env", ())}}


def image_environment() -> dict[str, str]:
    """The settings that the server's image has."""
    return dict(re.findall(r"(LATENTSERVE_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))


def problems(groups: Mapping[str, Sequence[Document]], folder: Path) -> dict[str, list[str]]:
    """What is wrong with documents; a kind without a schema is wrong as well.

    Args:
        groups: Documents by a name of one's choice, without blanks.
        folder: An empty folder.

    Returns:
        By the same names: nothing, or a line for each problem.
    """
    found: dict[str, list[str]] = {group: [] for group in groups}
    python = python_with(_REQUIREMENTS, "")
    pairs: list[tuple[str, Document]] = []
    # Overlays share most documents: each is validated once.
    built_in: dict[str, list[str]] = {}
    for group, members in groups.items():
        for member in members:
            if _schema(member).exists():
                pairs.append((group, member))
            else:
                built_in.setdefault(yaml.safe_dump(member), []).append(group)
    files: dict[str, list[str]] = {}
    for number, (text, wanted_by) in enumerate(built_in.items()):
        file = folder / f"{number}.yaml"
        file.write_text(text)
        files[str(file)] = wanted_by
    for line in _kubernetes_validate(python, list(files)) if files else ():
        level, name, problem = line.split(" ", 2)
        # WARN is a kind that it has no schema of, which it passes with status 0.
        if level != "INFO":
            for group in files[name]:
                found[group].append(problem)
    asked = [(member, json.loads(_schema(member).read_text())) for _, member in pairs]
    answer = _run([python, "-c", _CHECK], json.dumps(asked))
    assert answer.returncode == 0, answer.stderr
    for (group, member), lines in zip(pairs, json.loads(answer.stdout), strict=True):
        found[group] += [f"{member['kind']}: {line}" for line in lines]
    return found


def _kubernetes_validate(python: Path, files: Sequence[str]) -> list[str]:
    """The lines of `kubernetes-validate --strict`: one for each file and version."""
    versions = [argument for version in VERSIONS for argument in ("-k", version)]
    tool = python.with_name("kubernetes-validate")
    done = _run([tool, "--strict", *versions, *files])
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert (done.returncode == 1) == any(line.startswith("ERROR") for line in lines), done.stdout
    assert len(lines) == len(files) * len(VERSIONS), done.stdout
    return lines


def _schema(document: Document) -> Path:
    name = f"{document['kind']}-{document['apiVersion'].replace('/', '-')}.json"
    return SCHEMAS / name.lower()


def _run(command: Sequence[str | Path], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
