"""Every call of the client of 0.1.0, by its public name, against any server.

tests/compat/test_compatibility.py runs it twice: the old client with today's server, and today's
client with a server of the old protos. It needs the client alone, so it does not use pytest:

    python tests/compat/calls.py -v

    LATENTSERVE_SERVER   server of `gmm` (the default: Gaussian posterior, classes), `delta` (a
                         plain autoencoder) and `fragile` (fails on a latent above 100), with
                         --max-rows 16 and --admin, that requires `TOKEN`
    LATENTSERVE_BUSY     server that holds each call for a second and has room for 4 rows
    LATENTSERVE_JOBS     an empty folder, in which the results of jobs are left
    LATENTSERVE_CLIENT   expected version of the client
    LATENTSERVE_INDEX    what the index of a refused file counts: the files of the `call`, or
                         those of the `message`, which is all that today's client knows if a
                         server of 0.1.0 does not send the index as data
"""

import contextlib
import io
import os
import sys
import tempfile
import threading
import unittest
from pathlib import Path

import numpy as np

import latentserve
from latentserve import cli, jobs
from latentserve.client import (
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    ModelIdentity,
    NotFound,
    ResourceExhausted,
    Retry,
    ServerError,
    Unauthenticated,
    Unavailable,
)

sys.path.append(str(Path(__file__).parents[1] / "support"))
from clients import connect

TARGET = os.environ["LATENTSERVE_SERVER"]
BUSY = os.environ["LATENTSERVE_BUSY"]
TOKEN = "secret-of-many-characters"
SEED = 2**63 + 11
#: More than fit into two messages.
ROWS = 40
MAX_ROWS = 16
INDEX = os.environ["LATENTSERVE_INDEX"]

close = np.testing.assert_allclose
equal = np.testing.assert_array_equal


def near(images, others):
    """Asserts that images are equal up to rounding to 8 bits."""
    close(np.asarray(images, np.float64), np.asarray(others, np.float64), atol=0.51 / 255)


class Calls(unittest.TestCase):
    """Tests of both clients, here with the blocking one."""

    kind = "sync"

    def setUp(self):
        self.client = self.enterContext(connect(self.kind, TARGET, token=TOKEN, timeout=30))
        self.model = self.client.model()
        self.shape = self.model.image_shape

    def digits(self, n=ROWS, **options):
        return self.client.sample(n, seed=SEED, **options)

    # ---------------------------------------------------------------- the server and its models

    def test_health_is_serving(self):
        self.assertTrue(self.client.is_serving())
        self.assertTrue(self.client.is_serving("delta", timeout=5))
        with self.assertRaises(NotFound):
            self.client.is_serving("nope")

    def test_info_describes_the_server_and_its_models(self):
        info = self.client.info()
        self.assertRegex(info.version, r"^\d+\.\d+\.\d+$")
        self.assertRegex(info.onnxruntime_version, r"^\d+\.\d+")
        self.assertEqual((info.default_model, info.max_rows), ("gmm", MAX_ROWS))
        self.assertIn(info.device, ("auto", "cpu", "cuda"))
        for bound in ("max_message_bytes", "max_queue_rows", "max_queue_bytes", "max_score_draws"):
            self.assertGreater(getattr(info, bound), 0)
        models = self.client.models()
        self.assertEqual([model.name for model in models], sorted(model.name for model in models))
        self.assertEqual(info.models, models)
        self.assertIn(self.model, models)

    def test_a_model_is_described(self):
        model = self.model
        self.assertEqual((model.name, model.version, model.max_rows), ("gmm", 1, MAX_ROWS))
        self.assertEqual((model.posterior, model.prior), ("gaussian", "gmm"))
        self.assertEqual(model.likelihood, "bernoulli")
        self.assertEqual(len(model.labels), 3)
        self.assertIn("elbo", model.metrics)
        self.assertLessEqual({"encoder", "decoder"}, set(model.devices))
        self.assertTrue(all(len(digest) == 64 for digest in model.checksums.values()))
        self.assertEqual(model.devices.keys(), model.checksums.keys())
        self.assertTrue(model.dataset)
        self.assertGreater(model.created_at.year, 2000)
        self.assertEqual(model.noise, "philox4x64-10/as241/1")
        self.assertEqual(model.precision, "fp32")
        self.assertEqual(len(model.prior_mean), model.latent_dim)
        self.assertEqual(len(model.prior_std), model.latent_dim)
        self.assertTrue(model.has_percentiles)
        self.assertEqual(self.client.model("gmm", version=1), model)
        delta = self.client.model("delta")
        self.assertEqual((delta.posterior, delta.prior, delta.labels), ("delta", "none", ()))

    def test_reload(self):
        reloaded = self.client.reload()
        self.assertIn(ModelIdentity("gmm", 1), reloaded.serving)
        self.assertEqual((reloaded.added, reloaded.removed, reloaded.refused), ((), (), ()))

    # ------------------------------------------------------------------------------ unary calls

    def test_sample(self):
        digits = self.digits()
        self.assertEqual((digits.shape, digits.dtype), ((ROWS, *self.shape), np.float32))
        equal(np.concatenate([self.digits(5), self.digits(ROWS - 5, offset=5)]), digits)
        near(self.digits(dtype="uint8") / 255, digits)
        files = self.digits(dtype="png")
        self.assertEqual({file[:8] for file in files}, {b"\x89PNG\r\n\x1a\n"})
        self.assertEqual(len(files), ROWS)
        samples = self.client.sample_with_latents(ROWS, seed=SEED, model="gmm", version=1)
        self.assertEqual((samples.seed, samples.offset), (SEED, 0))
        equal(samples.images, digits)
        close(self.client.decode(samples.latents), digits, atol=1e-5)
        self.assertNotEqual(
            self.client.sample_with_latents(1).seed, self.client.sample_with_latents(1).seed
        )

    def test_every_sampling_parameter_has_an_effect(self):
        plain = self.client.sample_with_latents(ROWS, seed=SEED).latents
        for option in ({"label": 1}, {"temperature": 0.5}, {"truncation": 0.7}, {"offset": 1}):
            other = self.client.sample_with_latents(ROWS, seed=SEED, **option).latents
            self.assertFalse(np.array_equal(other, plain), option)
        equal(self.client.sample_with_latents(ROWS, seed=SEED, label=-1).latents, plain)

    def test_encode(self):
        digits = self.digits()
        posterior = self.client.encode(digits)
        self.assertEqual(posterior.mean.shape, (ROWS, self.model.latent_dim))
        self.assertEqual(posterior.log_var.shape, posterior.mean.shape)
        self.assertIsNone(posterior.z)
        self.assertIsNone(posterior.seed)
        for same in (digits.reshape(ROWS, -1), digits[:, 0]):
            equal(self.client.encode(same).mean, posterior.mean)
        pixels = self.digits(dtype="uint8")
        files = self.digits(dtype="png")
        equal(self.client.encode(files).mean, self.client.encode(pixels).mean)
        equal(self.client.encode(files, resize=True).mean, self.client.encode(pixels).mean)
        self.assertEqual(self.client.encode(digits.astype(np.float16)).mean.dtype, np.float32)

    def test_encode_draws(self):
        digits = self.digits()
        drawn = self.client.encode(digits, seed=SEED)
        self.assertEqual(drawn.seed, SEED)
        rest = self.client.encode(digits[3:], seed=SEED, offset=3)
        close(rest.z, drawn.z[3:], rtol=1e-5)
        self.assertIsNotNone(self.client.encode(digits[:2], draw=True).seed)
        noise = (drawn.z - drawn.mean) / drawn.std
        self.assertTrue(0.5 < noise.std() < 1.5)

    def test_decode_and_reconstruct(self):
        digits = self.digits()
        mean = self.client.encode(digits).mean
        images = self.client.decode(mean)
        self.assertEqual((images.shape, images.dtype), ((ROWS, *self.shape), np.float32))
        near(self.client.decode(mean, dtype="uint8") / 255, images)
        self.assertEqual(len(self.client.decode(mean, dtype="png")), ROWS)
        close(self.client.reconstruct(digits), images, atol=1e-5)
        near(self.client.reconstruct(digits, dtype="uint8") / 255, images)
        self.assertEqual(len(self.client.reconstruct(digits, dtype="png")), ROWS)
        z = self.client.encode(digits, seed=5, offset=2).z
        drawn = self.client.reconstruct(digits, seed=5, offset=2)
        close(drawn, self.client.decode(z), atol=1e-5)

    def test_interpolate(self):
        digits, latents = self.digits(2), self.client.encode(self.digits(2)).mean
        files = self.digits(2, dtype="png")
        for method in ("linear", "spherical"):
            path = self.client.interpolate(latents[0], latents[1], 5, method=method)
            self.assertEqual(path.images.shape, (5, *self.shape))
            close(path.latents[[0, -1]], latents, atol=1e-5)
            close(path.images, self.client.decode(path.latents), atol=1e-5)
        close(self.client.interpolate(digits[0], digits[1], 3).latents[0], latents[0], atol=1e-5)
        path = self.client.interpolate(files[0], files[1], 3, dtype="uint8", resize=True)
        self.assertEqual(path.images.dtype, np.uint8)

    def test_traverse(self):
        line = self.client.traverse(1, steps=3, range=2.0)
        self.assertEqual(line.images.shape, (1, 3, *self.shape))
        close(line.latents[0, 1], self.model.prior_mean, atol=1e-5)
        reach = line.latents[0, 2, 1] - line.latents[0, 1, 1]
        close(reach, 2.0 * self.model.prior_std[1], rtol=1e-4)
        digit = self.digits(1)[0]
        grid = self.client.traverse((0, 2), steps=3, middle=digit, dtype="uint8")
        self.assertEqual(grid.images.shape, (3, 3, *self.shape))
        close(grid.latents[1, 1], self.client.encode(digit[None]).mean[0], atol=1e-5)
        self.assertGreater(grid.latents[0, 0, 2], grid.latents[2, 0, 2])

    def test_score(self):
        digits = self.digits()
        scores = self.client.score(digits)
        close(scores.elbo, scores.reconstruction + scores.kl, rtol=1e-4)
        self.assertIsNone(scores.nll)
        self.assertIsNone(scores.seed)
        self.assertTrue(((scores.percentile >= 0) & (scores.percentile <= 100)).all())
        drawn = self.client.score(digits, draws=3, seed=SEED)
        self.assertEqual((drawn.nll.shape, drawn.seed), ((ROWS,), SEED))
        rest = self.client.score(digits[3:], draws=3, seed=SEED, offset=3)
        close(rest.nll, drawn.nll[3:], rtol=1e-4)

    def test_a_plain_autoencoder(self):
        model = self.client.model("delta")
        images = np.random.default_rng(0).random((5, *model.image_shape), np.float32)
        posterior = self.client.encode(images, model="delta")
        self.assertEqual(posterior.mean.shape, (5, model.latent_dim))
        self.assertIsNone(posterior.log_var)
        self.assertIsNone(posterior.std)
        (streamed,) = self.client.encode_stream([images], model="delta")
        self.assertIsNone(streamed.log_var)

    # ---------------------------------------------------------------------------------- streams

    def test_sample_stream(self):
        chunks = list(self.client.sample_stream(ROWS, seed=SEED, chunk_rows=9, offset=4))
        self.assertEqual([chunk.offset for chunk in chunks], [4, 13, 22, 31, 40])
        self.assertEqual({chunk.seed for chunk in chunks}, {SEED})
        whole = self.client.sample_with_latents(ROWS, seed=SEED, offset=4)
        equal(np.concatenate([chunk.images for chunk in chunks]), whole.images)
        equal(np.concatenate([chunk.latents for chunk in chunks]), whole.latents)
        few = self.client.sample_stream(3, label=2, dtype="uint8")
        self.assertEqual(next(iter(few)).images.dtype, np.uint8)

    def test_encode_stream_and_decode_stream(self):
        digits = self.digits()
        batches = [digits[:1], digits[1:30], digits[30:]]
        posteriors = list(self.client.encode_stream(batches, seed=SEED, window=2))
        self.assertEqual([len(posterior.mean) for posterior in posteriors], [1, 29, 10])
        whole = self.client.encode(digits, seed=SEED)
        for name in ("mean", "log_var", "z"):
            joined = np.concatenate([getattr(posterior, name) for posterior in posteriors])
            close(joined, getattr(whole, name), rtol=1e-5, atol=1e-6)
        images = list(self.client.decode_stream([posterior.mean for posterior in posteriors]))
        close(np.concatenate(images), self.client.decode(whole.mean), atol=1e-5)
        (files,) = self.client.encode_stream([self.digits(3, dtype="png")], resize=True)
        self.assertEqual(len(files.mean), 3)

    # ----------------------------------------------------------------------------------- errors

    def raised(self, error, call, *arguments, **options):
        """Returns what a call raises, which must be exactly of the class for its status."""
        with self.assertRaises(error) as caught:
            call(*arguments, **options)
        self.assertIs(type(caught.exception), error)
        return caught.exception

    def test_an_invalid_argument_names_its_field(self):
        error = self.raised(InvalidArgument, self.client.encode, np.zeros((1, 3), np.float32))
        self.assertEqual((error.code.name, error.reason), ("INVALID_ARGUMENT",) * 2)
        (violation,) = error.violations
        self.assertEqual(violation.field, "images.tensor.shape")
        self.assertRegex(violation.description, r"^got \[1, 3\], wanted ")
        self.assertIn(violation.field, str(error))
        self.assertIsNone(error.retry_seconds)
        error = self.raised(InvalidArgument, self.client.sample, 1, temperature=1000.0)
        self.assertEqual(error.violations[0].field, "temperature")

    def test_an_invalid_picture_file_is_named_by_its_index(self):
        files = self.digits(20, dtype="png")
        files[17] = b"no picture"
        error = self.raised(InvalidArgument, self.client.encode, files)
        field = f"images.encoded.files[{17 if INDEX == 'call' else 17 - MAX_ROWS}]"
        self.assertEqual(error.violations[0].field, field)
        self.assertIn(field, str(error))

    def test_unknown_models_and_unsupported_operations(self):
        error = self.raised(NotFound, self.client.sample, 1, model="nope")
        self.assertEqual(error.reason, "MODEL_NOT_FOUND")
        self.assertIn("nope", str(error))
        self.raised(NotFound, self.client.model, "gmm", version=9)
        image = np.zeros((1, *self.client.model("delta").image_shape), np.uint8)
        error = self.raised(FailedPrecondition, self.client.encode, image, draw=True, model="delta")
        self.assertEqual(error.reason, "NOT_FOR_THIS_MODEL")
        self.raised(FailedPrecondition, self.client.sample, 1, model="delta")
        self.raised(FailedPrecondition, self.client.score, image, model="delta")
        self.raised(NotFound, lambda: list(self.client.sample_stream(1, model="nope")))
        self.raised(NotFound, lambda: list(self.client.encode_stream([image], model="nope")))

    def test_an_internal_error_has_a_request_id(self):
        dim = self.client.model("fragile").latent_dim
        latents = np.full((1, dim), 200, np.float32)
        error = self.raised(InternalError, self.client.decode, latents, model="fragile")
        self.assertTrue(error.request_id)
        self.assertIn(error.request_id, str(error))

    def test_a_missing_or_wrong_token_is_unauthenticated(self):
        for token in (None, "wrong"):
            with connect(self.kind, TARGET, token=token) as client:
                self.assertTrue(client.is_serving())
                error = self.raised(Unauthenticated, client.info)
                self.assertEqual(error.reason, "UNAUTHENTICATED")
                self.raised(Unauthenticated, lambda c=client: list(c.sample_stream(1)))

    def test_a_call_beyond_its_timeout_is_deadline_exceeded(self):
        with connect(self.kind, BUSY, token=TOKEN) as client:
            self.raised(DeadlineExceeded, client.decode, np.zeros((1, 3)), timeout=0.2)

    def test_a_full_server_sends_a_retry_delay(self):
        once = Retry(attempts=1)
        with (
            connect(self.kind, BUSY, token=TOKEN, retry=once) as other,
            connect(self.kind, BUSY, token=TOKEN, retry=once) as client,
        ):
            refused = threading.Event()

            def fill():
                while not refused.is_set():
                    with contextlib.suppress(ResourceExhausted):
                        other.decode(np.zeros((4, 3)))

            filling = threading.Thread(target=fill)
            filling.start()
            try:
                with self.assertRaises(ResourceExhausted) as caught:
                    for _ in range(100):
                        with contextlib.suppress(DeadlineExceeded):
                            client.decode(np.zeros((4, 3)), timeout=0.1)
            finally:
                refused.set()
                filling.join()
            self.assertEqual(caught.exception.reason, "OVERLOADED")
            self.assertGreater(caught.exception.retry_seconds, 0)

    def test_an_unreachable_server_is_unavailable(self):
        with connect(self.kind, "127.0.0.1:1", retry=Retry(attempts=1)) as client:
            error = self.raised(Unavailable, client.info, timeout=5)
            self.assertIn("127.0.0.1:1", str(error))
            self.assertIsInstance(error, ServerError)


class AsynchronousCalls(Calls):
    kind = "async"

    def test_small_calls_are_coalesced(self):
        digits, z = self.digits(6), self.client.encode(self.digits(6)).mean
        with connect("async", TARGET, token=TOKEN, coalesce=True) as client:
            close(client.encode(digits).mean, z, rtol=1e-5, atol=1e-6)
            close(client.decode(z), self.client.decode(z), atol=1e-5)


class Programs(unittest.TestCase):
    """Jobs and commands."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.client = self.enterContext(Client(TARGET, token=TOKEN))

    def test_the_client_has_the_expected_version(self):
        self.assertEqual(latentserve.__version__, os.environ["LATENTSERVE_CLIENT"])

    def test_jobs(self):
        root = Path(os.environ["LATENTSERVE_JOBS"])
        digits = self.client.sample(25, seed=5, dtype="uint8")
        np.save(self.folder / "digits.npy", digits)
        done = jobs.sample(self.client, 25, root / "samples", seed=5, shard_rows=10)
        self.assertEqual((done.rows, done.shards, done.rows_before, done.seed), (25, 3, 0, 5))
        self.assertEqual((done.model, done.version), ("gmm", 1))
        equal(self.shards(root / "samples", "images"), digits)
        jobs.encode(self.client, self.folder / "digits.npy", root / "latents", seed=3)
        posterior = self.client.encode(digits, seed=3)
        close(self.shards(root / "latents", "mean"), posterior.mean, rtol=1e-5, atol=1e-6)
        close(self.shards(root / "latents", "z"), posterior.z, rtol=1e-5, atol=1e-6)
        mean = sorted((root / "latents").glob("mean-*.npy"))
        jobs.decode(self.client, mean, root / "images")
        decoded = self.client.decode(posterior.mean, dtype="uint8")
        near(self.shards(root / "images", "images") / 255, decoded / 255)

    def test_a_job_names_the_invalid_picture_file(self):
        pictures = self.folder / "pictures"
        pictures.mkdir()
        for number, content in enumerate(self.client.sample(20, seed=1, dtype="png")):
            (pictures / f"{number:02}.png").write_bytes(content)
        jobs.encode(self.client, pictures, self.folder / "good")
        # The client looks at the first bytes alone.
        (pictures / "17.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        expected = (jobs.SourceError, r"17\.png: got ")
        if INDEX == "message":
            expected = (InvalidArgument, r"images\.encoded\.files\[1\]: got ")
        with self.assertRaisesRegex(*expected):
            jobs.encode(self.client, pictures, self.folder / "bad")

    def shards(self, folder, name):
        return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}-*.npy"))])

    def test_commands(self):
        token, picture = self.folder / "token", self.folder / "digits.png"
        token.write_text(TOKEN)
        output = io.StringIO()

        def command(*arguments):
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                return cli.main([*arguments, "--server", TARGET, "--token-file", str(token)])

        self.assertEqual(command("info"), 0, output.getvalue())
        self.assertIn("gmm", output.getvalue())
        self.assertEqual(command("sample", "-n", "9", "-o", str(picture)), 0, output.getvalue())
        self.assertEqual(picture.read_bytes()[:4], b"\x89PNG")
        self.assertEqual(command("sample", "-n", "9", "--model", "nope"), 1)


if __name__ == "__main__":
    unittest.main()
