"""The command `score` against a real server."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from tests.support.in_process import run_cli

pytest_plugins = ["tests.support.cli_fixtures"]


def test_score_prints_an_aligned_table_with_a_row_for_each_file(server_env, digits, shipped_client):
    files = [digits / f"{row}.png" for row in range(5)]
    done = run_cli("score", *files, env=server_env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["file", "ELBO", "bits/dim", "reconstruction", "KL", "percentile"]
    assert len({len(line) for line in lines}) == 1
    scores = shipped_client.score(np.load(digits / "digits.npy"))
    for row in range(5):
        name, elbo, bits, reconstruction, kl, _ = lines[1 + row].split()
        assert name == str(files[row])
        assert elbo == f"{scores.elbo[row]:.2f}"
        assert float(bits) == pytest.approx(scores.elbo[row] / (784 * math.log(2)), abs=5.1e-4)
        assert reconstruction == f"{scores.reconstruction[row]:.2f}"
        assert kl == f"{scores.kl[row]:.2f}"
    assert lines[6].split()[:2] == ["mean", f"{scores.elbo.astype(float).mean():.2f}"]


def test_score_of_one_image_has_no_mean(server_env, digits):
    done = run_cli("score", digits / "0.png", env=server_env)
    assert len(done.stdout.splitlines()) == 2


def test_score_with_draws_prints_the_nll_of_the_seed(server_env, digits, shipped_client):
    score = ("score", digits / "digits.npy", "--draws", "10", "--seed", "3")
    done = run_cli(*score, "--json", env=server_env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["row"] for row in rows] == list(range(5))
    scores = shipped_client.score(np.load(digits / "digits.npy"), draws=10, seed=3)
    assert np.array_equal(np.float32([row["nll"] for row in rows]), scores.nll)
    assert "NLL" in run_cli(*score, env=server_env).stdout.splitlines()[0]


def test_score_writes_csv_and_json_lines(server_env, tmp_path, digits):
    score = ("score", digits / "digits.npy", "--draws", "2", "--seed", "3")
    done = run_cli(*score, "-o", tmp_path / "scores.csv", env=server_env)
    assert done.stdout == f"{tmp_path / 'scores.csv'}: 5 images, seed 3\n", done.stderr
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "row", "elbo", "bits_per_dimension", "reconstruction", "kl", "nll", "percentile"
    ]  # fmt: skip
    done = run_cli(*score, "-o", tmp_path / "scores.jsonl", env=server_env)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [float(row["elbo"]) for row in rows] == [line["elbo"] for line in lines]
    done = run_cli(*score, "-o", "-", env=server_env)
    assert done.stdout == (tmp_path / "scores.csv").read_text()
    assert done.stderr == "5 images, seed 3\n"


def test_a_file_name_with_control_characters_stays_on_one_line(server_env, tmp_path, digits):
    name = tmp_path / "a\nb \udcff\u202e.png"
    shutil.copy(digits / "0.png", name)
    done = run_cli("score", name, env=server_env)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "a\\nb \\xff\\u202e.png" in done.stdout
    done = run_cli("score", name, "--json", env=server_env)
    assert json.loads(done.stdout)["file"] == str(name)
    assert run_cli("score", name, "-o", tmp_path / "x.csv", env=server_env).returncode == 0


def test_a_model_without_a_likelihood_is_one_line(kinds_server, digits):
    done = run_cli(
        "score", digits / "0.png", "--resize", "--model", "delta", "--server", kinds_server.target
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
