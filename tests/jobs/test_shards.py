"""Shards as units of work: planned here, pickled, computed in any order, committed in theirs."""

import concurrent.futures
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from latentserve import jobs
from latentserve.client import NotFound, Unavailable
from tests.jobs.test_sizes import SHAPES, write_photos
from tests.support.dying import Opened
from tests.support.job_child import SHAPE, free_model_info, model_info
from tests.support.processes import Server
from tests.support.tiny import write_tiny

PARTS = 5


@pytest.fixture
def images(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (50, *SHAPE)).astype(np.uint8)
    np.save(tmp_path / "images.npy", rows)
    return tmp_path / "images.npy"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def sent(shard: jobs.Shard) -> jobs.Shard:
    """The shard as another process gets it."""
    return pickle.loads(pickle.dumps(shard))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of several sizes, `photos`, and the job that encodes them, `plain`."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "photos", SHAPES)
    with Opened() as client:
        jobs.encode(client, folder / "photos", folder / "plain", seed=3, shard_rows=3)
    return folder


class TestOrder:
    @given(
        order=st.permutations(range(PARTS)),
        again=st.lists(st.integers(0, PARTS - 1), max_size=3),
        stop=st.integers(0, PARTS),
    )
    @settings(max_examples=15)
    def test_results_in_any_order_more_than_once_and_in_two_runs_have_the_same_bytes(
        self, photos, tmp_path_factory, order, again, stop
    ):
        folder = tmp_path_factory.mktemp("job")
        arguments = (jobs.encode, Opened(), photos / "photos", folder)
        with jobs.plan(*arguments, seed=3, shard_rows=3) as plan:
            shards = list(plan.shards())
            assert len(shards) == PARTS
            for index in order[:stop]:
                jobs.commit(plan, jobs.run_shard(sent(shards[index]), Opened()))
        committed = len(list(folder.glob("mean-*")))
        assert committed == next(n for n in range(PARTS + 1) if n not in order[:stop])
        with jobs.plan(*arguments, seed=3, shard_rows=3) as plan:
            shards = {shard.index: sent(shard) for shard in plan.shards()}
            assert list(shards) == list(range(committed, PARTS))
            for index in (*again, *order, *again):
                if index in shards:
                    jobs.commit(plan, jobs.run_shard(shards[index], Opened()))
            plan.finish()
        assert contents(folder) == contents(photos / "plain")

    def test_one_result_may_be_committed_again_while_it_waits_for_an_earlier_shard(
        self, client, tmp_path
    ):
        with jobs.plan(jobs.sample, client, 50, tmp_path / "j", seed=7, shard_rows=20) as plan:
            first, *others = (jobs.run_shard(shard, client) for shard in plan.shards())
            for result in (*others, *others, first, first, *others):
                jobs.commit(plan, result)
            plan.finish()
        jobs.sample(client, 50, tmp_path / "plain", seed=7, shard_rows=20)
        assert contents(tmp_path / "j") == contents(tmp_path / "plain")


class TestShard:
    def test_says_what_it_is(self, client, tmp_path, images):
        with jobs.plan(jobs.encode, client, images, tmp_path / "j", seed=3, shard_rows=20) as plan:
            shards = list(plan.shards())
        assert [shard.index for shard in shards] == [0, 1, 2]
        assert [list(shard.rows) for shard in shards][2] == list(range(40, 50))
        assert shards[1].files == ("mean-00001.npy", "log_var-00001.npy", "z-00001.npy")
        assert (shards[0].seed, shards[0].folder) == (3, str(tmp_path / "j"))
        assert (shards[0].model.name, shards[0].model.checksums["encoder"]) == ("tiny", "e1")

    def test_has_absolute_paths_in_another_process(self, client, tmp_path, images, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with jobs.plan(jobs.encode, client, images.name, "j") as plan:
            shard = next(plan.shards())
            pickled = pickle.dumps(shard)
            monkeypatch.chdir("/")
            there = pickle.loads(pickled)
            assert (shard.folder, there.folder) == ("j", str(tmp_path / "j"))
            result = jobs.run_shard(there, client)
            monkeypatch.chdir(tmp_path)
            jobs.commit(plan, result)
            assert plan.finish().rows == 50

    def test_holds_only_its_part_of_the_source(self, tmp_path):
        photos = write_photos(tmp_path / "photos", SHAPES)
        with jobs.plan(jobs.encode, Opened(), photos, tmp_path / "j", shard_rows=1) as plan:
            for shard in plan.shards():
                pickled = pickle.dumps(shard)
                names = [path.name for path in photos.iterdir() if path.name.encode() in pickled]
                assert names == [f"{shard.rows[0]:03}.png"]

    def test_its_rows_may_be_spread_over_files(self, client, tmp_path):
        rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
        np.save(tmp_path / "all.npy", rows)
        pieces = [tmp_path / f"{n}.npy" for n in range(4)]
        for path, piece in zip(pieces, np.split(rows, [13, 20, 41]), strict=True):
            np.save(path, piece)
        jobs.decode(client, tmp_path / "all.npy", tmp_path / "plain", shard_rows=9)
        with jobs.plan(jobs.decode, client, pieces, tmp_path / "j", shard_rows=9) as plan:
            for shard in plan.shards():
                jobs.commit(plan, jobs.run_shard(sent(shard), client))
            plan.finish()
        assert contents(tmp_path / "j") == contents(tmp_path / "plain")


class TestRefusals:
    def test_a_source_that_another_host_has_in_another_version(self, client, tmp_path, images):
        with jobs.plan(jobs.encode, client, images, tmp_path / "j") as plan:
            shard = next(plan.shards())
            os.utime(images, (1, 1))
            with pytest.raises(jobs.SourceError, match=r"images\.npy: got .* host has another"):
                jobs.run_shard(sent(shard), client)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"checksums": {"encoder": "e1", "decoder": "x"}}, r"model\.graphs\.decoder: got x, "),
            ({"noise": "other/1"}, r"model\.noise: got other/1, the job has counted/1"),
        ],
    )
    def test_a_server_with_another_model_of_the_name(self, client, tmp_path, changes, text):
        with jobs.plan(jobs.sample, client, 50, tmp_path / "j", seed=7) as plan:
            client.served = model_info(**changes)
            client.asked.clear()
            with pytest.raises(jobs.JobError, match=rf"/j: shard 0: the server's tiny/1 .*{text}"):
                jobs.run_shard(next(plan.shards()), client)
            assert client.asked == ["model"]

    def test_a_model_of_another_scaling(self, tmp_path):
        with Opened() as client, jobs.plan(jobs.sample, client, 5, tmp_path / "j") as plan:
            client.served = free_model_info(latent_scaling=None)
            with pytest.raises(jobs.JobError, match=r"model\.latent_scaling: got None"):
                jobs.run_shard(next(plan.shards()), client)

    def test_a_server_without_the_model(self, client, tmp_path):
        def gone(*_, **__):
            raise NotFound("tiny", grpc.StatusCode.NOT_FOUND)

        with jobs.plan(jobs.sample, client, 5, tmp_path / "j") as plan:
            client.model = gone
            with pytest.raises(NotFound):
                jobs.run_shard(next(plan.shards()), client)

    def test_a_folder_that_the_workers_do_not_share(self, client, tmp_path):
        with jobs.plan(jobs.sample, client, 50, tmp_path / "j", seed=7) as plan:
            result = jobs.run_shard(next(plan.shards()), client)
            (hidden,) = (tmp_path / "j").glob(".images-*")
            hidden.unlink()
            with pytest.raises(jobs.JobError, match=r"shard 0 was computed, but \.images-00000"):
                jobs.commit(plan, result)
        assert not (tmp_path / "j" / "cursor.jsonl").exists()

    def test_the_plan_locks_the_folder_until_it_is_closed(self, client, tmp_path):
        plan = jobs.plan(jobs.sample, client, 5, tmp_path / "j", seed=7)
        with pytest.raises(jobs.JobError, match="another process is working there"):
            jobs.sample(client, 5, tmp_path / "j", seed=7)
        jobs.run_shard(next(plan.shards()), client)
        plan.close()
        assert sorted(contents(tmp_path / "j")) == [".lock", "job.json"]
        assert jobs.sample(client, 5, tmp_path / "j", seed=7).rows == 5

    def test_a_plan_that_fails_gives_up_the_lock(self, client, tmp_path):
        def gone(*_, **__):
            raise Unavailable("gone", grpc.StatusCode.UNAVAILABLE)

        model, client.model = client.model, gone
        with pytest.raises(Unavailable):
            jobs.plan(jobs.sample, client, 5, tmp_path / "j")
        client.model = model
        jobs.plan(jobs.sample, client, 5, tmp_path / "j").close()

    def test_a_runner_that_leaves_shards(self, client, tmp_path):
        with pytest.raises(jobs.JobError, match="left 3 of 3 shards uncommitted"):
            jobs.sample(client, 50, tmp_path / "j", shard_rows=20, runner=lambda _plan: None)

    def test_ray_that_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(jobs.MissingPackage, match=r"pip install 'latentserve\[ray\]'"):
            jobs.RayRunner(jobs.Connection())


class TestConnection:
    def test_reaches_a_server_that_requires_certificates_and_a_token_from_another_process(
        self, tmp_path
    ):
        write_tiny(tmp_path / "models" / "tiny")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        for name in ("server", "caller"):
            certificate = authority.issue_cert(f"{name}.example")
            certificate.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
            certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        for name in ("tokens", "token"):
            (tmp_path / name).write_text("open-sesame-open-sesame\n")
        with Server(
            tmp_path / "models", tmp_path / "log",
            "--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"),
            "--tls-client-ca", str(tmp_path / "ca.pem"), "--token-file", str(tmp_path / "tokens"),
        ) as server:  # fmt: skip
            connection = jobs.Connection(
                server.target,
                tls_ca=tmp_path / "ca.pem",
                tls_cert=tmp_path / "caller.pem",
                tls_key=tmp_path / "caller.key",
                tls_name="server.example",
                token_file=tmp_path / "token",
            )
            context = multiprocessing.get_context("forkserver")
            with (
                connection.client() as client,
                jobs.plan(jobs.sample, client, 50, tmp_path / "j", shard_rows=20) as plan,
                concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
            ):
                for shard in plan.shards():
                    jobs.commit(plan, pool.submit(jobs.run_shard, shard, connection).result(60))
                assert plan.finish().shards == 3
        assert "sesame" not in (tmp_path / "j" / "job.json").read_text()

    def test_is_pickled_with_absolute_paths_and_without_their_content(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("token").write_text("secret-token\n")
        Path("key.pem").write_text("-----BEGIN PRIVATE KEY-----\nsecret-key")
        connection = jobs.Connection("host:1", token_file="token", tls_key="key.pem")
        pickled = pickle.dumps(connection)
        assert b"secret" not in pickled
        there = pickle.loads(pickled)
        assert (there.target, there.token_file) == ("host:1", tmp_path / "token")
        assert there.tls_ca is None

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"", "an empty file"),
            (b"\xff", "non-ASCII characters"),
            (b"open\x01sesame", "unprintable characters"),
        ],
    )
    def test_an_unusable_token_file_is_named(self, tmp_path, content, text):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(ValueError, match=f"token_file: .*token: got {text}"):
            jobs.Connection(token_file=tmp_path / "token").client()

    @pytest.mark.parametrize("name", ["token_file", "tls_ca", "tls_cert", "tls_key"])
    def test_a_pipe_which_can_be_read_only_once_is_refused(self, tmp_path, name):
        os.mkfifo(tmp_path / "pipe")
        wanted = f"{name}: {tmp_path}/pipe: got a pipe or a device, wanted a regular file"
        with pytest.raises(ValueError, match=wanted):
            jobs.Connection(**{name: tmp_path / "pipe"}).client()

    def test_a_missing_token_file_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"token_file: .*token: No such file"):
            jobs.Connection(token_file=tmp_path / "token").client()
