"""The parts of the side-by-side benchmarks, and one short real run of them."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    flagship,
    h2load,
    instructions,
    plot,
    serving,
    soak,
    training,
    training_colour,
)
from benchmarks.contenders import chosen
from benchmarks.graphs import Reference, WrongAnswer
from benchmarks.h2load import LoadFailed
from benchmarks.processes import Program, ServerFailed, cpu_seconds, pinned, resident_mib, tree
from benchmarks.results import Results, table
from benchmarks.rounds import rows
from benchmarks.servers import spatial
from benchmarks.servers.inference import inference_call
from benchmarks.servers.mosec import Mosec
from benchmarks.servers.plain import plain_call
from benchmarks.servers.server import Measurement
from benchmarks.shapes import SHAPES, Shape, named
from latentserve.v1 import latent_service_pb2 as pb
from service.api.inference import inference_service_pb2
from tests.support import ROOT
from tests.support.waiting import wait_until

# Output of h2load 1.52, and its log of four calls.
PRINTED = """\
starting benchmark...
spawning thread #0: 4 total client(s). 4 total requests
Application protocol: h2c
progress: 100% done

finished in 3.27ms, 1223.24 req/s, 397.55KB/s
requests: 4 total, 4 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.27KB (1300) total, 136B (136) headers (space savings 56.13%), 1.05KB (1072) data
                     min         max         mean         sd        +/- sd
time for request:     1.02ms      2.01ms      1.50ms       300us    50.00%
"""
LOG = "1\t200\t1000\n2\t200\t2000\n3\t200\t1500\n4\t200\t1500\n"
ONE = Shape("encode", 1, "uint8", 4, 8)
MANY = Shape("decode", 1024, "float32", 4, 1)


def test_the_output_of_h2load_is_parsed():
    load = h2load.parse(PRINTED, LOG, 4)
    assert load.calls == 4
    assert load.seconds == pytest.approx(0.00327)
    assert load.data_bytes == 1072
    assert load.p50_ms == 1.5
    assert 1.5 < load.p99_ms <= 2.0


@pytest.mark.parametrize(
    ("printed", "log", "said"),
    [
        (PRINTED, LOG, "4 calls got HTTP status 200, wanted 5 .requests: 4 total"),
        ("could not connect", "", "got no figures"),
    ],
)
def test_unanswered_calls_fail_the_measurement(printed, log, said):
    with pytest.raises(LoadFailed, match=said):
        h2load.parse(printed, log, 5)


def test_a_framed_message_has_a_flag_and_its_length():
    assert h2load.framed(b"abc") == b"\0\0\0\0\3abc"


def test_cpu_time_includes_ended_children_and_memory_running_ones():
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    stay = "print('burnt', flush=True)\ntime.sleep(60)"
    script = f"""
import subprocess, sys, time
subprocess.run([sys.executable, '-c', {burn!r}])
child = subprocess.Popen([sys.executable, '-c', {burn + stay!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print('ready', child.pid, flush=True)
time.sleep(60)
"""
    program = Program([sys.executable, "-c", script], "test-cpu")
    try:
        child = int(program.line("ready").split()[1])
        assert set(tree(program.process.pid)) == {program.process.pid, child}
        assert 0.55 < cpu_seconds(program.process.pid) < 2.0
        assert resident_mib(program.process.pid) > resident_mib(child) > 1
    finally:
        program.stop()
    wait_until(lambda: not running(child), seconds=10)


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_ends_early_is_reported_with_its_log():
    program = Program([sys.executable, "-c", "raise SystemExit('no model')"], "test-ends")
    with pytest.raises(ServerFailed, match=r"test-ends: it ended before.*\nno model"):
        program.line("listening on")
    program.stop()


def results() -> Results:
    """Two servers, two rounds; the second round is slow for both."""
    found = Results("a machine", "a command", [ONE, MANY], ["triton", "ours"])
    for slow in (1, 3):
        found.add("triton", ONE, Measurement(1000, 0.5, 0.2 * slow, 3.0, 9.0, 100.0))
        found.add("ours", ONE, Measurement(2000, 0.5, 0.2 * slow, 1.0, 2.0, 50.0))
    found.add("ours", MANY, Measurement(10, 1.0, 0.1024, 1.0, 2.0, 50.0))
    return found


def test_figures_are_medians_and_ratios_are_of_the_same_round():
    found = results()
    assert found.median("triton", ONE, "cpu_us_per_call") == pytest.approx(400)
    assert found.median("ours", MANY, "cpu_us_per_image") == pytest.approx(10)
    assert found.median("ours", MANY, "images_per_second") == pytest.approx(10_240)
    assert found.median("triton", MANY, "p50_ms") is None
    assert found.ratio("ours", "triton", ONE, "cpu_us_per_image") == pytest.approx(0.5)
    assert found.ratio("ours", "triton", MANY, "cpu_us_per_image") is None


def test_the_table_has_a_row_for_each_server():
    lines = table(results()).splitlines()
    header = "| server CPU, µs an image | encode-1-uint8-x32 | decode-1024-float32-x4 |"
    at = lines.index(header)
    assert lines[at + 2] == "| triton | 400.0 ± 200.0 |  |"
    assert lines[at + 3] == "| ours | 200.0 ± 100.0 | 10.0 ± 0.0 |"
    at = lines.index(header.replace("image |", "image: multiple of triton |", 1))
    assert lines[at + 3] == "| ours | 0.50 |  |"


def test_a_pinned_server_is_compared_with_the_baseline_on_the_same_cpus():
    found = Results("a machine", "a command", [ONE], ["mosec@0", "ours@0", "mosec@0,1", "ours@0,1"])
    for server, cpu in zip(found.servers, (0.2, 0.1, 0.2, 0.4), strict=True):
        found.add(server, ONE, Measurement(1000, 0.5, cpu, 3.0, 9.0, 100.0, 0.01))
    lines = table(found).splitlines()
    at = lines.index("| server CPU, µs an image: multiple of mosec | encode-1-uint8-x32 |")
    assert lines[at + 2 : at + 6] == [
        "| mosec@0 | 1.00 |", "| ours@0 | 0.50 |", "| mosec@0,1 | 1.00 |", "| ours@0,1 | 2.00 |"
    ]  # fmt: skip
    at = lines.index("| load generator's CPU, µs a call | encode-1-uint8-x32 |")
    assert lines[at + 2] == "| mosec@0 | 10.0 ± 0.0 |"


def test_children_of_a_pinned_thread_run_on_its_cpus_alone():
    usable = os.sched_getaffinity(0)
    ask = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with pinned({min(usable)}):
        assert subprocess.check_output(ask, text=True) == f"[{min(usable)}]\n"
    with pinned(frozenset()):
        assert subprocess.check_output(ask, text=True) == f"{sorted(usable)}\n"


def test_there_is_one_of_each_server_for_each_pin():
    cpu = str(min(os.sched_getaffinity(0)))
    found = chosen(["bare", "ours"], ["ours-two=--workers 2"], [cpu])
    assert {one.name: one.cpus for one in found} == {
        f"bare@{cpu}": {int(cpu)}, f"ours@{cpu}": {int(cpu)}, f"ours-two@{cpu}": {int(cpu)}
    }  # fmt: skip
    assert all(not one.cpus for one in chosen(["bare", "ours"]))


def test_results_are_read_as_they_were_written_and_drawn(tmp_path):
    found = results()
    found.write(tmp_path / "some.json")
    assert Results.read(tmp_path / "some.json") == found
    told = json.loads((tmp_path / "some.json").read_text())["figures"]["triton"][ONE.name]
    assert told["cpu_us_per_call"] == pytest.approx({"median": 400, "min": 200, "max": 600})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plot", tmp_path / "some.json", tmp_path / "some.svg"],
        check=False,
    )
    assert done.returncode == 0
    picture = (tmp_path / "some.svg").read_text()
    assert picture.startswith("<?xml")
    assert list(plot.panels(found)) == [
        "encode, 1 a call, 32 in flight", "decode, 1024 a call, 4 in flight"
    ]  # fmt: skip


def test_memory_growth_is_per_hundred_thousand_calls():
    samples = [soak.Sample(60.0 + n, 50_000 * n, 100.0 + n) for n in range(5)]
    assert soak.growth(samples) == pytest.approx((2.0, 0.0))
    samples[2] = soak.Sample(62.0, 100_000, 107.0)
    grown, error = soak.growth(samples)
    assert grown == pytest.approx(2.0)
    assert 0.5 < error < 2.5
    with pytest.raises(ValueError, match="got 2 samples"):
        soak.growth(samples[:2])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: named(["encode-2"]), "shape: got 'encode-2'"),
        (lambda: chosen(["torchserve"]), "server: got 'torchserve'"),
        (lambda: chosen([], ["--threads 1"]), "variant: got '--threads 1'"),
        (lambda: chosen([], ["plain=--threads 1"]), "variant: got 'plain="),
        (lambda: chosen(["plain"], [], ["1000"]), "pin: got '1000', wanted some of"),
        (lambda: chosen(["plain"], [], ["0-1"]), "pin: got '0-1', wanted some of"),
    ],
)
def test_an_unknown_shape_server_or_variant_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_shape_names_are_unique_and_selected_by_prefix():
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert [shape.name for shape in named(["decode-1024"])] == [
        "decode-1024-uint8-x4", "decode-1024-float32-x4"
    ]  # fmt: skip


def mosec_call(shape: Shape):
    """The request that mosec gets; made without a server."""
    return Mosec.call(Mosec.__new__(Mosec), shape)


@pytest.mark.parametrize(
    "make", [plain_call, lambda shape: inference_call(shape, "some"), mosec_call]
)
@pytest.mark.parametrize("shape", [ONE, MANY], ids=lambda shape: shape.name)
def test_requests_have_the_bytes_of_the_array(make, shape):
    assert shape.array().tobytes() in make(shape).message


@pytest.fixture(scope="module")
def dense(models, tmp_path_factory):
    """The benchmarks' cache, with a model of the same sizes that was trained for fewer steps."""
    folder = tmp_path_factory.mktemp("cache")
    bundle = folder / "models" / "dense" / "1"
    shutil.copytree(models / "mnist" / "1", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"name": "dense"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.graphs.CACHE", folder)
        yield


@pytest.mark.usefixtures("dense")
def test_an_answer_that_differs_from_onnxruntimes_is_refused():
    reference = Reference()
    right = reference._answer(ONE)
    reference.check(ONE, right)
    with pytest.raises(WrongAnswer, match=r"it differs from onnxruntime's by 0\.1"):
        reference.check(ONE, [right[0] + np.float32(0.1), right[1]])
    with pytest.raises(WrongAnswer, match="got 1 arrays, wanted 2"):
        reference.check(ONE, right[:1])
    with pytest.raises(WrongAnswer, match="differs"):
        reference.check(ONE, [right[0] * np.float32("nan"), right[1]])


@pytest.mark.skipif(not h2load.available(), reason="no h2load (Debian: nghttp2-client)")
@pytest.mark.usefixtures("dense")
@pytest.mark.slow
def test_ours_and_the_plain_servicer_are_measured_side_by_side(tmp_path, capsys):
    out = tmp_path / "out.json"
    began = time.monotonic()
    status = serving.main(
        ["--servers", "bare,echo-grpcio,plain,ours", "--rounds", "1", "--seconds", "0.2",
         "--shapes", "encode-1-uint8-x32,decode-1024-uint8", "--out", str(out),
         "--pin", str(max(os.sched_getaffinity(0)))]
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "multiple of bare" in said.out
    found = Results.read(out)
    pin = f"@{max(os.sched_getaffinity(0))}"
    assert found.servers == [name + pin for name in ("bare", "echo-grpcio", "plain", "ours")]
    for server in ("plain" + pin, "ours" + pin):
        for shape in found.shapes:
            assert found.values(server, shape, "cpu_us_per_image")[0] > 0
            assert found.values(server, shape, "p50_ms")[0] > 0
            assert found.values(server, shape, "load_cpu_us_per_call")[0] > 0
            (measured,) = found.rounds[server][shape.name]
            assert measured.cpu_seconds < 4 * (time.monotonic() - began)


@pytest.mark.usefixtures("dense")
@pytest.mark.slow
def test_the_python_calls_of_one_call_are_counted():
    assert 20 < float(instructions._run(ROOT, "encode", 10, "--profile")) < 200


@pytest.mark.skipif(not h2load.available(), reason="no h2load (Debian: nghttp2-client)")
@pytest.mark.slow
def test_the_flagship_is_measured_beside_its_graphs(capsys):
    assert flagship.main(["--rounds", "1", "--seconds", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == [
        "| Sample, 64, 4 in flight", "| Encode, 1, 32 in flight"
    ]  # fmt: skip


@pytest.mark.parametrize("name", spatial.SERVERS)
def test_a_servers_image_of_any_size_is_compared_with_onnxruntimes(name, tmp_path):
    server = spatial.SERVERS[name](name, tmp_path)
    z = np.random.default_rng(0).standard_normal((1, 32, 2, 3), np.float32)
    method, request = server.request("taef2", z)
    assert method.startswith("/")
    assert z.tobytes() in request
    image = np.random.default_rng(1).integers(0, 255, (1, 3, 16, 24), np.uint8)
    answers = {
        "ours": lambda pixels: pb.DecodeResponse(
            images={"tensor": {"data": pixels.tobytes()}}
        ).SerializeToString(),
        "plain": lambda pixels: pixels.tobytes(),
        "triton": lambda pixels: inference_service_pb2.ModelInferResponse(
            raw_output_contents=[pixels.tobytes()]
        ).SerializeToString(),
    }
    answer = answers[name.partition("-")[0]]
    spatial.check(server, "taef2", answer(image), image)
    spatial.check(server, "taef2", answer(image + 1), image)
    with pytest.raises(ServerFailed, match="taef2: differs from onnxruntime's by"):
        spatial.check(server, "taef2", answer(image[:, ::-1]), image)
    with pytest.raises(ServerFailed, match="got 384 values, wanted 1152"):
        spatial.check(server, "taef2", answer(image[:, :1]), image)


def test_trainers_are_compared_by_the_medians_of_their_rounds():
    def report(seconds):
        return {
            "cpu_seconds": seconds,
            "wall_seconds": seconds / 2,
            "epochs": 3,
            "held_out_nats": 100.0,
        }

    rounds = [
        {"ours": report(own), "ours, bfloat16": report(own / 2), "pythae": report(6.0)}
        for own in (1.0, 2.0, 3.0)
    ]
    assert training.table(rounds).splitlines()[2:] == [
        "| ours | 90.0 ± 60.0 | 180.0 ± 120.0 | -100.0 ± 0.0 |",
        "| ours, bfloat16 | 180.0 ± 120.0 | 360.0 ± 240.0 | -100.0 ± 0.0 |",
        "| pythae | 30.0 ± 0.0 | 60.0 ± 0.0 | -100.0 ± 0.0 |",
        "| ours: multiple of pythae | 3.00 | 3.00 | |",
        "| ours, bfloat16: multiple of pythae | 6.00 | 6.00 | |",
    ]


def test_trainers_for_colour_are_compared_by_the_medians_of_their_rounds():
    rounds = [
        {name: {"cpu_seconds": 10.0, "images": 100 * number, "parameters": 1_500_000,
                "psnr": 10.0 + number, "bits_per_dimension": 4.0}
         for name in ("photo", "pythae, its networks")}
        for number in (1, 2, 4)
    ]  # fmt: skip
    assert rows(rounds, training_colour.COLUMNS)[2:] == [
        "| photo | 12.00 ± 1.50 | 4.000 ± 0.000 | 20 ± 15 | 1.50 ± 0.00 |",
        "| pythae, its networks | 12.00 ± 1.50 | 4.000 ± 0.000 | 20 ± 15 | 1.50 ± 0.00 |",
    ]


@pytest.mark.long
def test_our_training_in_colour_is_measured_on_held_out_images(tmp_path):
    rng = np.random.default_rng(0)
    # Two colours, 120 levels apart: their mean alone leaves a PSNR of 12.6 dB.
    images = rng.integers(60, 80, (600, 3, 32, 32)).astype(np.uint8)
    images[1::2] += 120
    path = tmp_path / "images.npz"
    np.savez(path, train=images[:500], test=images[500:], labels=np.arange(500) % 2)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainers.ours_colour_program", f"--images={path}",
         "--seconds=8", "--threads=1", "--network=photo"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert 0 < report["cpu_seconds"] < 60
    assert report["images"] > 32
    assert report["psnr"] > 20
    # No model predicts the noise of 20 levels.
    assert report["bits_per_dimension"] > math.log2(20)


@pytest.mark.slow
def test_our_trainer_learns_from_the_shared_images(tmp_path):
    rng = np.random.default_rng(0)
    # A bright half, left or right: half a bit of structure that no constant explains.
    images = np.zeros((600, 28, 28), np.uint8)
    images[::2, :, :14] = images[1::2, :, 14:] = rng.integers(200, 256, (300, 28, 14))
    path = tmp_path / "images.npz"
    np.savez(path, train=images[:500].reshape(500, -1), test=images[500:].reshape(100, -1))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainers.ours_program", f"--images={path}",
         "--epochs=20", "--batch-size=50", "--threads=1"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["epochs"] == 20
    assert 0 < report["cpu_seconds"] < 60
    # A grey image would take 784 log 2 = 543 nats.
    assert report["held_out_nats"] < 250
