"""Tests of the wheel in an environment that has its dependencies and nothing else.

tests/program/test_architecture.py runs them by unittest, since pytest would be one more package:

    python check_client.py -v          # the server's address is in LATENTSERVE_SERVER
"""

import asyncio
import contextlib
import importlib.metadata
import io
import os
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

import latentserve
from latentserve import cli, jobs
from latentserve.client import AsyncClient, Client, InvalidArgument, NotFound, Posterior

TARGET = os.environ["LATENTSERVE_SERVER"]


class Environment(unittest.TestCase):
    def test_there_is_the_client_and_what_it_needs_and_nothing_else(self) -> None:
        there = {package.metadata["Name"].lower() for package in importlib.metadata.distributions()}
        # typing-extensions comes with grpcio; pip and setuptools with the environment.
        tools = {"pip", "setuptools", "typing_extensions"}
        self.assertEqual(there - tools, {"latentserve", "grpcio", "numpy", "protobuf"})

    def test_it_is_the_one_of_the_wheel(self) -> None:
        self.assertIn("site-packages", str(Path(latentserve.__file__)))

    def test_nothing_of_the_application_is_loaded(self) -> None:
        strangers = {"PIL", "torch", "onnxruntime", "pydantic", "service", "bundle", "pyarrow"}
        self.assertEqual(strangers & set(sys.modules), set())


class Calls(unittest.TestCase):
    def setUp(self) -> None:
        self.client = Client(TARGET)
        self.addCleanup(self.client.close)

    def test_every_call_answers(self) -> None:
        client = self.client
        model = client.model()
        self.assertTrue(client.is_serving())
        self.assertEqual(client.info().default_model, model.name)
        digits = client.sample(7, seed=1)
        self.assertEqual(digits.shape, (7, *model.image_shape))
        posterior = client.encode(digits, seed=2)
        self.assertIsInstance(posterior, Posterior)
        self.assertEqual(client.decode(posterior.z).shape, digits.shape)
        self.assertEqual(client.reconstruct(digits).shape, digits.shape)
        files = client.sample(2, seed=1, dtype="png")
        self.assertEqual(files[0][:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(client.encode(files).mean.shape, (2, model.latent_dim))
        self.assertEqual(client.interpolate(digits[0], digits[1], 4).images.shape[0], 4)
        self.assertEqual(client.traverse(0, steps=3).latents.shape, (1, 3, model.latent_dim))
        scores = client.score(digits, draws=2)
        np.testing.assert_allclose(scores.elbo, scores.reconstruction + scores.kl, rtol=1e-5)

    def test_streams_are_the_same_as_calls(self) -> None:
        chunks = [chunk.images for chunk in self.client.sample_stream(50, seed=3, chunk_rows=20)]
        np.testing.assert_array_equal(np.concatenate(chunks), self.client.sample(50, seed=3))
        posteriors = list(self.client.encode_stream(chunks))
        self.assertEqual([len(posterior.mean) for posterior in posteriors], [20, 20, 10])
        images = list(self.client.decode_stream([posterior.mean for posterior in posteriors]))
        self.assertEqual([len(batch) for batch in images], [20, 20, 10])

    def test_errors_are_told(self) -> None:
        with self.assertRaises(InvalidArgument) as caught:
            self.client.encode(np.zeros((1, 3), np.float32))
        self.assertEqual(caught.exception.violations[0].field, "images.tensor.shape")
        with self.assertRaises(NotFound):
            self.client.sample(1, model="nope")

    def test_the_asynchronous_client_answers_alike(self) -> None:
        async def scene() -> None:
            async with AsyncClient(TARGET, coalesce=True) as client:
                digits = self.client.sample(6, seed=4)
                np.testing.assert_array_equal(await client.sample(6, seed=4), digits)
                parts = await asyncio.gather(
                    *(client.encode(digits[row : row + 1]) for row in range(6))
                )
                whole = await client.encode(digits)
                joined = np.concatenate([part.mean for part in parts])
                np.testing.assert_array_equal(joined, whole.mean)
                chunks = [chunk async for chunk in client.sample_stream(30, seed=1, chunk_rows=7)]
                self.assertEqual(sum(len(chunk.images) for chunk in chunks), 30)

        asyncio.run(scene())


class Files(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def command(self, *arguments: str) -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return cli.main([*arguments, "--server", TARGET])

    def test_commands_write_pictures(self) -> None:
        picture = self.folder / "digits.png"
        self.assertEqual(self.command("sample", "-n", "9", "--seed", "1", "-o", str(picture)), 0)
        self.assertEqual(picture.read_bytes()[:4], b"\x89PNG")
        self.assertEqual(self.command("info"), 0)
        self.assertEqual(self.command("sample", "-n", "9", "--model", "nope"), 1)

    def test_a_job_writes_shards(self) -> None:
        with Client(TARGET) as client:
            jobs.sample(client, 25, self.folder / "job", seed=5, shard_rows=10)
            wanted = client.sample(25, seed=5, dtype="uint8")
        shards = sorted((self.folder / "job").glob("images-*.npy"))
        np.testing.assert_array_equal(np.concatenate([np.load(shard) for shard in shards]), wanted)


if __name__ == "__main__":
    unittest.main()
