"""Workflows call make targets; a release needs a tag, version and changelog that agree."""

import re

import pytest
import yaml

from deploy.check_release import problem
from tests.support import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PACKAGE = '"""Words."""\n\n__version__ = "0.2.0"\n'


def steps() -> list[tuple[str, dict[str, object]]]:
    return [
        (f"{path.name} {job}", step)
        for path in WORKFLOWS
        for job, content in yaml.safe_load(path.read_text())["jobs"].items()
        for step in content.get("steps", ())  # a call of another workflow has none
    ]


def test_there_is_a_workflow_of_checks_and_one_of_releases():
    assert [path.name for path in WORKFLOWS] == ["checks.yml", "release.yml"]


@pytest.mark.parametrize(("where", "step"), steps())
def test_every_step_is_one_make_target_or_an_action(where, step):
    if "uses" in step:
        assert re.fullmatch(r"(actions|docker)/[\w-]+@v\d+", step["uses"]), where
    else:
        command, target = step["run"].split()
        assert command == "make", where
        assert target in TARGETS, where


def test_the_test_matrix_has_every_python_of_the_package():
    matrix = yaml.safe_load(WORKFLOWS[0].read_text())["jobs"]["tests"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert matrix["python"] == named


def test_pre_commit_runs_local_hooks_only():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]


@pytest.mark.parametrize(
    ("tag", "changelog", "wanted"),
    [
        ("v0.2.0", "# Changelog\n\n## [0.2.0] - 2027-01-31\n", None),
        ("v0.2.1", "## [0.2.1] - 2027-01-31\n", "wanted v0.2.0"),
        ("0.2.0", "## [0.2.0] - 2027-01-31\n", "wanted v0.2.0"),
        ("v0.2.0", "## [Unreleased]\n", "no '## [0.2.0] - YYYY-MM-DD'"),
    ],
)
def test_a_release_is_refused_where_tag_version_and_changelog_differ(tag, changelog, wanted):
    found = problem(tag, PACKAGE, changelog)
    assert found is None if wanted is None else wanted in found
