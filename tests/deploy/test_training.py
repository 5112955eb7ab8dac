"""A training on several hosts by Slurm and by Kubeflow's operator: what each of them would start.

Neither is here: the script runs with programs in the place of Slurm's, and the manifest is read.
"""

import copy
import os
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.manifests import Document, one, problems

SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
OVERLAY = "overlays/train"


def torchrun_options(arguments: list[str]) -> Namespace:
    """What torchrun reads of its arguments."""
    run = pytest.importorskip("torch.distributed.run")
    options: Namespace = run.parse_args(arguments)
    return options


def train_options(torchrun: Namespace) -> Namespace:
    """What `latentserve train` reads of the arguments that torchrun passes on."""
    parsing = pytest.importorskip("training.arguments")
    assert torchrun.module
    assert torchrun.training_script == "latentserve"
    command, *arguments = torchrun.training_script_args
    assert command == "train"
    options: Namespace = parsing.parser().parse_args(arguments)
    return options


def submitted(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """What the script has `srun` start, with its options."""
    for name, body in {
        "scontrol": '[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"',
        "srun": f'printf "%s\\0" "$@" "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$OMP_NUM_THREADS" '
        f'> "{folder}/started"',
    }.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
    }
    subprocess.run([SCRIPT, *arguments], check=True, timeout=10, env=variables | environment)
    return (folder / "started").read_text().split("\0")[:-1]


def test_the_slurm_script_starts_torchrun_on_each_host(tmp_path: Path) -> None:
    bad_exit, cpus, program, *arguments, store, threads = submitted(
        tmp_path, "--preset", "conv", "--out", "/shared/runs/a b", PROCESSES_PER_HOST="8"
    )
    assert (bad_exit, cpus) == ("--kill-on-bad-exit=1", "--cpus-per-task=16")
    assert program == "torchrun"
    assert (store, threads) == ("1", "2")
    options = torchrun_options(arguments)
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "8", 10)
    assert (options.rdzv_backend, options.rdzv_id) == ("c10d", "123456")
    assert options.rdzv_endpoint == "node07:23456"
    train = train_options(options)
    assert (train.preset, train.out, train.resume) == ("conv", Path("/shared/runs/a b"), True)


def test_a_host_of_slurm_has_one_process_with_all_cores_by_default(tmp_path: Path) -> None:
    _, _, _, *arguments, _, threads = submitted(tmp_path, "--out", "runs/a")
    assert torchrun_options(arguments).nproc_per_node == "1"
    assert threads == "16"


def test_the_slurm_script_is_shell_without_errors_of_syntax() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True, timeout=10)
    comments = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert "#SBATCH --ntasks-per-node=1" in comments  # torchrun starts the processes
    # Slurm stops reading at the first command.
    assert SCRIPT.read_text().index("set -e") > SCRIPT.read_text().index(comments[-1])


def worker() -> Document:
    return dict(one(OVERLAY, "PyTorchJob")["spec"]["pytorchReplicaSpecs"]["Worker"])


def pod() -> Document:
    """The Pod that the operator makes of the template."""
    worker_spec = copy.deepcopy(worker())
    spec = {**worker_spec["template"]["spec"], "restartPolicy": worker_spec["restartPolicy"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made"}, "spec": spec}


def test_the_pod_of_a_training_is_valid_and_a_mistyped_field_is_found(tmp_path: Path) -> None:
    groups = {"right": [pod()], "wrong": [pod()]}
    (broken,) = groups["wrong"]
    broken["spec"]["enableServiceLink"] = broken["spec"].pop("enableServiceLinks")
    found = problems(groups, tmp_path)
    assert found["right"] == []
    assert found["wrong"]
    assert all("enableServiceLink" in line for line in found["wrong"])


def test_the_job_is_understood_by_torchrun_and_train(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = one(OVERLAY, "PyTorchJob")["spec"]
    (container,) = worker()["template"]["spec"]["containers"]
    elastic = spec["elasticPolicy"]
    conf = ",".join(f"{entry['key']}={entry['value']}" for entry in elastic["rdzvConf"])
    # The variables that the operator sets (pkg/controller.v1/pytorch/elastic.go of its 1.9.0).
    for name, value in {
        "RDZV_BACKEND": elastic["rdzvBackend"],
        "RDZV_ID": elastic["rdzvId"],
        "RDZV_ENDPOINT": "digits-worker-0:23456",
        "RDZV_CONF": conf,
        "NNODES": str(worker()["replicas"]),
        "NPROC_PER_NODE": spec["nprocPerNode"],
        "MAX_RESTARTS": str(elastic["maxRestarts"]),
    }.items():
        monkeypatch.setenv(f"PET_{name}", value)
    program, *arguments = [*container["command"], *container["args"]]
    assert program == "torchrun"
    options = torchrun_options(arguments)
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "1", 10)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "digits-worker-0:23456")
    assert options.rdzv_conf == "join_timeout=1800"
    train = train_options(options)
    assert train.resume
    # What it writes is on volumes.
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert train.out.parent.as_posix() in mounts
    assert {"/data", "/tmp"} <= mounts
    assert "LATENTSERVE_DATA_DIR=/data" in (ROOT / "Dockerfile").read_text()
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]


def test_the_pods_of_a_training_have_no_privileges() -> None:
    spec = worker()["template"]["spec"]
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (
        True,
        10001,
    )
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # torchrun ends its processes after 30 seconds at the latest.
    assert spec["terminationGracePeriodSeconds"] > 30
