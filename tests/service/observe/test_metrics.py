"""The metrics, read through the exposition formats as Prometheus reads them."""

import concurrent.futures
import itertools
import re
import sys
import threading
import weakref

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from service import errors
from service.observe import counters
from service.observe.latents import HORIZON
from service.observe.merge import merge
from service.observe.metrics import REJECTIONS, Metrics
from service.observe.supervision import SupervisorMetrics
from service.observe.telemetry import Telemetry
from tests.support import ROOT


def read(metrics, accept="text/plain", parse=text_format):
    body, _ = metrics.exposition(accept)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return read(metrics)[name, tuple(sorted(labels.items()))]


def test_calls_are_counted_by_rpc_model_code_and_transport():
    metrics = Metrics()
    for code in ("OK", "OK", "NOT_FOUND"):
        metrics.request("Encode", "mnist" if code == "OK" else "", code, 0.01)
    metrics.request("Encode", "mnist", "OK", 0.01, "http")
    name, grpc = "latentserve_requests_total", {"rpc": "Encode", "transport": "grpc"}
    assert value(metrics, name, model="mnist", code="OK", **grpc) == 2
    assert value(metrics, name, model="", code="NOT_FOUND", **grpc) == 1
    assert value(metrics, name, model="mnist", code="OK", rpc="Encode", transport="http") == 1
    assert value(metrics, "latentserve_request_seconds_count", **grpc) == 3
    assert value(metrics, "latentserve_request_seconds_sum", **grpc) == pytest.approx(0.03)


def test_routed_calls_are_counted_by_version():
    metrics = Metrics()
    for version, code in (("1", "OK"), ("2", "OK"), ("2", "INTERNAL")):
        metrics.routed("mnist", version, code, 0.5)
    name = "latentserve_routed_requests_total"
    assert value(metrics, name, model="mnist", version="2", code="INTERNAL") == 1
    name = "latentserve_routed_request_seconds_sum"
    assert value(metrics, name, model="mnist", version="2") == 1.0
    assert value(metrics, name, model="mnist", version="1") == 0.5


def test_batches_and_queues_are_measured():
    metrics = Metrics()
    metrics.batch("decoder", "cpu", 64, 0.5)
    metrics.queued([0.25])
    metrics.watch_queue(lambda: (7, 700))
    metrics.rejected("overloaded")
    labels = {"graph": "decoder", "device": "cpu"}
    assert value(metrics, "latentserve_compute_seconds_sum", **labels) == 0.5
    assert value(metrics, "latentserve_batch_rows_bucket", le="64.0") == 1
    assert value(metrics, "latentserve_batch_rows_bucket", le="32.0") == 0
    assert value(metrics, "latentserve_queue_seconds_sum") == 0.25
    assert value(metrics, "latentserve_queue_rows") == 7
    assert value(metrics, "latentserve_queue_bytes") == 700
    assert value(metrics, "latentserve_rejected_total", reason="overloaded") == 1


def test_rejections_are_counted_from_zero_on():
    metrics = Metrics()
    for reason in REJECTIONS:
        assert value(metrics, "latentserve_rejected_total", reason=reason) == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.Overloaded("full", 1.0), "overloaded"),
        (errors.OverCallerLimit("full", 1.0), "caller_limit"),
        (errors.OutOfMemory(), "out_of_memory"),
        (errors.NotReady("loading"), "not_ready"),
        (errors.Unauthenticated("no token"), "unauthenticated"),
        (errors.TooLarge("large"), None),
        (errors.ModelNotFound("none"), None),
    ],
)
def test_refusals_are_counted_if_the_server_is_their_cause(error, reason):
    metrics = Metrics()
    Telemetry(metrics, None, print).refused(error)
    for other in REJECTIONS:
        assert value(metrics, "latentserve_rejected_total", reason=other) == (other == reason)


def test_limits_and_what_is_open_are_shown():
    metrics = Metrics()
    metrics.limits(4, 1000, 2**20)
    metrics.watch_open(connections=lambda: 3, calls=lambda: 7)
    metrics.watch_open("http", calls=lambda: 2)
    names = ("threads", "max_queue_rows", "max_queue_bytes")
    assert [value(metrics, f"latentserve_{name}") for name in names] == [4, 1000, 2**20]
    assert value(metrics, "latentserve_connections_open", transport="grpc") == 3
    assert value(metrics, "latentserve_calls_open", transport="grpc") == 7
    assert value(metrics, "latentserve_calls_open", transport="http") == 2
    # grpcio does not tell.
    assert "latentserve_streams_open" not in {name for name, _ in read(metrics)}


def test_calls_and_rows_are_counted_for_callers_with_a_name():
    metrics = Metrics()
    metrics.caller("team-a", "OK", 5)
    metrics.caller("team-a", "RESOURCE_EXHAUSTED", 0)
    name = "latentserve_caller_calls_total"
    assert value(metrics, name, caller="team-a", code="OK") == 1
    assert value(metrics, name, caller="team-a", code="RESOURCE_EXHAUSTED") == 1
    assert value(metrics, "latentserve_caller_rows_total", caller="team-a") == 5


def test_series_of_models_that_are_no_longer_served_vanish():
    metrics = Metrics()
    metrics.serving([("a", "1", "cpu"), ("b", "2", "cpu")], refused=["b", "c"])
    metrics.encoded("a", "1", np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32))
    assert value(metrics, "latentserve_model_info", model="b", version="2", device="cpu") == 1
    refused = {name: value(metrics, "latentserve_model_refused", model=name) for name in "abc"}
    assert refused == {"a": 0, "b": 1, "c": 1}
    assert value(metrics, "latentserve_latent_mean", model="a", version="1", dim="0") == 1
    metrics.serving([("a", "2", "cpu")], refused=[])
    # A call that was in flight across the reload.
    metrics.encoded("a", "1", np.ones((3, 2), np.float32), None)
    gone = ("latentserve_latent_mean", (("dim", "0"), ("model", "a"), ("version", "1")))
    assert gone not in read(metrics)
    series = [labels for name, labels in read(metrics) if name.startswith("latentserve_model")]
    assert {dict(labels)["model"] for labels in series} == {"a"}
    assert not [name for name, _ in read(metrics) if name.startswith("latentserve_latent")]


def test_latent_statistics_equal_those_computed_with_numpy():
    rng = np.random.default_rng(0)
    mean = (rng.standard_normal((500, 3)) * [1, 2, 0.01] + [0, 5, 0]).astype(np.float32)
    log_var = rng.normal(-1, 0.5, (500, 3)).astype(np.float32)
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    metrics.encoded("m", "1", mean, log_var)
    kl = 0.5 * (mean.astype(float) ** 2 + np.exp(log_var) - 1 - log_var).mean(axis=0)
    for dim in range(3):
        labels = {"model": "m", "version": "1", "dim": str(dim)}
        got = value(metrics, "latentserve_latent_mean", **labels)
        assert got == pytest.approx(mean[:, dim].mean(), rel=1e-4)
        got = value(metrics, "latentserve_latent_variance", **labels)
        assert got == pytest.approx(mean[:, dim].var(), rel=1e-3)
        assert value(metrics, "latentserve_latent_kl_nats", **labels) == pytest.approx(
            kl[dim], rel=1e-4
        )


def test_spatial_latents_have_statistics_for_each_channel_and_images_count_alike():
    rng = np.random.default_rng(0)
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    images = []
    for count, height, width in ((3, 4, 6), (2, 16, 8), (3, 4, 6), (1, 5, 7)):
        shape = count, 2, height, width
        mean = rng.normal([[[[0]], [[5]]]], 2, shape).astype(np.float32)
        log_var = rng.normal(-1, 0.5, shape).astype(np.float32)
        metrics.encoded("m", "1", mean, log_var)
        images += zip(mean.astype(float), log_var.astype(float), strict=True)
    lines = metrics.exposition("text/plain")[0].decode().splitlines()
    assert len([line for line in lines if line.startswith("latentserve_latent_")]) == 6
    for channel in range(2):
        values = [mean[channel] for mean, _ in images]
        first = np.mean([mean.mean() for mean in values])
        second = np.mean([(mean**2).mean() for mean in values])
        kl = np.mean(
            [
                0.5 * (mean[channel] ** 2 + np.exp(var[channel]) - 1 - var[channel]).mean()
                for mean, var in images
            ]
        )
        labels = {"model": "m", "version": "1", "dim": str(channel)}
        # Later batches count a little more than earlier ones.
        for name, wanted in (("mean", first), ("variance", second - first**2), ("kl_nats", kl)):
            got = value(metrics, f"latentserve_latent_{name}", **labels)
            assert got == pytest.approx(wanted, rel=2e-3), name


def test_pending_latents_take_little_memory():
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    references = []
    for _ in range(16):
        mean = np.ones((1, 16, 128, 128), np.float32)
        references.append(weakref.ref(mean))
        metrics.encoded("m", "1", mean, None)
        del mean
    assert sum(reference() is not None for reference in references) < 5


def test_latent_statistics_forget_old_images():
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    labels = {"model": "m", "version": "1", "dim": "0"}
    for level, batches in ((0.0, 100), (4.0, int(5 * HORIZON / 1000))):
        for _ in range(batches):
            metrics.encoded("m", "1", np.full((1000, 1), level, np.float32), None)
    assert value(metrics, "latentserve_latent_mean", **labels) == pytest.approx(4.0, rel=0.02)
    assert ("latentserve_latent_kl_nats", tuple(sorted(labels.items()))) not in read(metrics)


def test_latent_statistics_distinguish_a_dead_dimension_from_an_active_one():
    rng = np.random.default_rng(1)
    posterior_variance = 0.2
    alive = rng.normal(0, np.sqrt(1 - posterior_variance), 10_000)
    mean = np.stack([alive, np.zeros(10_000)], axis=1).astype(np.float32)
    log_var = np.tile(np.log([posterior_variance, 1.0]), (10_000, 1)).astype(np.float32)
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    metrics.encoded("m", "1", mean, log_var)

    def figure(name, dim):
        return value(metrics, f"latentserve_latent_{name}", model="m", version="1", dim=dim)

    assert figure("mean", "0") == pytest.approx(0, abs=0.05)
    assert figure("variance", "0") == pytest.approx(1 - posterior_variance, abs=0.05)
    # With both moments matched, the KL is -log(posterior variance) / 2.
    assert figure("kl_nats", "0") == pytest.approx(-np.log(posterior_variance) / 2, abs=0.05)
    assert figure("kl_nats", "1") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e3])
def test_a_batch_that_is_not_finite_is_left_out_of_the_latent_statistics(bad):
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    ones, zeros = np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32)
    metrics.encoded("m", "1", ones, zeros)
    metrics.encoded("m", "1", ones, np.full((4, 2), bad, np.float32))
    if abs(bad) != 1e3:
        metrics.encoded("m", "1", np.full((4, 2), bad, np.float32), None)
    metrics.encoded("m", "1", ones[:0], zeros[:0])
    labels = {"model": "m", "version": "1", "dim": "1"}
    assert value(metrics, "latentserve_latent_mean", **labels) == 1.0
    assert value(metrics, "latentserve_latent_kl_nats", **labels) == 0.5


def test_latent_statistics_restart_for_another_model_of_the_same_name_and_version():
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    metrics.encoded("m", "1", np.ones((4, 2), np.float32), None)
    metrics.encoded("m", "1", np.zeros((4, 3), np.float32), None)
    assert value(metrics, "latentserve_latent_mean", model="m", version="1", dim="2") == 0


def test_a_scrape_during_a_reload_sees_the_models_before_or_after_it():
    metrics = Metrics()
    metrics.serving([("a", "1", "cpu"), ("b", "1", "cpu")], refused=["c"])
    done = threading.Event()

    def reload():
        while not done.is_set():
            metrics.serving([("a", "2", "cpu"), ("b", "2", "cpu")], refused=["c"])
            metrics.serving([("a", "1", "cpu"), ("b", "1", "cpu")], refused=["c"])

    thread = threading.Thread(target=reload)
    thread.start()
    try:
        for _ in range(50):
            found = read(metrics)
            served = {
                (dict(labels)["model"], dict(labels)["version"])
                for name, labels in found
                if name == "latentserve_model_info"
            }
            assert served in ({("a", "1"), ("b", "1")}, {("a", "2"), ("b", "2")})
            assert found["latentserve_model_refused", (("model", "c"),)] == 1
    finally:
        done.set()
        thread.join()


def test_histogram_buckets_reach_from_200_microseconds_to_a_minute():
    metrics = Metrics()
    metrics.request("Sample", "m", "OK", 0.0001)
    metrics.request("Sample", "m", "OK", 61.0)
    name = "latentserve_request_seconds_bucket"
    for bound, count in (("0.0002", 1), ("60.0", 1), ("+Inf", 2)):
        assert value(metrics, name, rpc="Sample", transport="grpc", le=bound) == count


def test_process_metrics_are_exposed_and_registries_are_separate():
    one, other = Metrics(), Metrics()
    one.request("Sample", "m", "OK", 0.1)
    assert read(one)["process_resident_memory_bytes", ()] > 0
    assert any(name == "python_info" for name, _ in read(one))
    assert not any(name == "latentserve_requests_total" for name, _ in read(other))


@pytest.mark.parametrize("family", [counters.Counter, counters.Histogram])
def test_the_label_values_of_a_call_are_bound_once(monkeypatch, family):
    metrics = Metrics()
    metrics.request("Encode", "m", "OK", 0.1)

    def child(*_):
        raise AssertionError("bound again")

    monkeypatch.setattr(family, "child", child)
    for _ in range(3):
        metrics.request("Encode", "m", "OK", 0.1)
    with pytest.raises(AssertionError, match="bound again"):
        metrics.request("Score", "m", "OK", 0.1)


def test_the_alert_rules_name_existing_metrics():
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    metrics.request("Encode", "m", "OK", 0.1)
    metrics.rejected("overloaded")
    metrics.watch_tls(lambda: 0.0)
    rules = ROOT / "deploy" / "prometheus" / "alerts.yml"
    named = set(re.findall(r"latentserve_\w+", rules.read_text()))
    assert named
    of_supervisor = text_format(SupervisorMetrics(range(2)).page())
    exposed = {sample.name for family in of_supervisor for sample in family.samples}
    assert named <= exposed | {name for name, _ in read(metrics)}


def test_the_supervisors_page_counts_restarts_by_worker_and_keeps_that_label_when_merged():
    metrics = SupervisorMetrics(range(2))
    metrics.restarted(1)
    page, _ = merge({"supervisor": metrics.page()}, "text/plain")
    samples = [sample for family in text_format(page.decode()) for sample in family.samples]
    restarts = {
        sample.labels["worker"]: sample.value
        for sample in samples
        if sample.name == "latentserve_worker_restarts_total"
    }
    assert restarts == {"0": 0, "1": 1}
    (memory,) = (sample for sample in samples if sample.name == "process_resident_memory_bytes")
    assert memory.labels == {"worker": "supervisor"}
    assert memory.value > 0


def test_the_text_format_and_openmetrics_are_exposed():
    metrics = Metrics()
    metrics.request("Encode", "m", "OK", 0.1)
    _, kind = metrics.exposition("text/plain")
    assert kind.startswith("text/plain")
    accept = "application/openmetrics-text; version=1.0.0"
    _, kind = metrics.exposition(accept)
    assert kind.startswith("application/openmetrics-text")
    found = read(metrics, accept, openmetrics)
    labels = {"code": "OK", "model": "m", "rpc": "Encode", "transport": "grpc"}
    assert found["latentserve_requests_total", tuple(labels.items())] == 1
    assert not [name for name, _ in found if name.endswith("_created")]


@pytest.fixture
def eager_switches():
    """Switches threads as often as possible, so that a race has a chance to show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_switches")
def test_compute_threads_may_encode_and_drop_at_once():
    metrics = Metrics()
    metrics.serving([("m", "1", "cpu")], refused=[])
    ones, zeros = np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32)

    together = threading.Barrier(4)

    def compute():
        together.wait()
        for _ in range(30_000):
            metrics.encoded("m", "1", ones, zeros)
            metrics.rejected("deadline")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(compute) for _ in range(4)]:
            done.result()
    labels = {"model": "m", "version": "1", "dim": "3"}
    assert value(metrics, "latentserve_latent_mean", **labels) == 1.0
    assert value(metrics, "latentserve_latent_kl_nats", **labels) == 0.5
    assert value(metrics, "latentserve_rejected_total", reason="deadline") == 120_000


@pytest.mark.parametrize("name", ["CounterMetricFamily", "HistogramMetricFamily"])
def test_label_values_that_appear_during_a_scrape_do_not_break_it(monkeypatch, name):
    metrics = Metrics()
    metrics.request("Encode", "m", "OK", 0.1)
    family = getattr(counters, name)
    add_metric, numbers = family.add_metric, itertools.count()

    def calls_meanwhile(*arguments, **options):
        # As the event loop's thread may, whenever the scrape's thread yields to it.
        number = next(numbers)
        metrics.request(f"rpc-{number}", "m", "OK", 0.1)
        add_metric(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(family, "add_metric", calls_meanwhile)
        labels = {"rpc": "Encode", "model": "m", "code": "OK", "transport": "grpc"}
        assert value(metrics, "latentserve_requests_total", **labels) == 1
    labels = {"rpc": "rpc-0", "model": "m", "code": "OK", "transport": "grpc"}
    assert value(metrics, "latentserve_requests_total", **labels) == 1
