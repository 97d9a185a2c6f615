"""pyproject.toml, requirements.lock and environment.yml describe one and the same environment."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
# What the tests' own environment holds. Other libraries to measure beside ours are asked for separately.
LOCKED = PROJECT["dependencies"] + EXTRAS["book"] + EXTRAS["test"] + EXTRAS["scale"]


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in LOCK:
        if line.strip() and not line.lstrip().startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def python_of_conda() -> str:
    (line,) = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str) and re.match(r"python\b", d)]
    return re.fullmatch(r"python=(\d+\.\d+)", line)[1]


def test_the_lock_pins_every_version_and_names_no_address():
    lines = [line for line in LOCK if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) > 100
    loose = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .+)?", line)]
    assert loose == []
    assert not [line for line in LOCK if "://" in line or line.lstrip().startswith("-")]


@pytest.mark.parametrize("python", ["3.11.9", "3.12.4"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_lock_has_one_version_of_each_package_for_a_machine(python, platform):
    machine = {
        "python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": platform,
        "platform_machine": "x86_64", "os_name": "nt" if platform == "win32" else "posix",
        "platform_python_implementation": "CPython", "implementation_name": "cpython",
    }  # fmt: skip
    for name, found in pins().items():
        here = [pin for pin in found if pin.marker is None or pin.marker.evaluate(machine)]
        assert len(here) <= 1, f"{name} is pinned to {[str(pin.specifier) for pin in here]}"
    direct = {canonicalize_name(Requirement(line).name) for line in LOCKED}
    missing = {n for n in direct if not any(p.marker is None or p.marker.evaluate(machine) for p in pins().get(n, []))}
    assert missing == set()


@pytest.mark.parametrize("line", LOCKED)
def test_a_dependency_is_locked_within_its_range(line):
    wanted = Requirement(line)
    assert len(wanted.specifier) > 0, f"{wanted.name} has no range"
    found = pins().get(canonicalize_name(wanted.name), [])
    assert found, f"{wanted.name} is not in requirements.lock"
    for pin in found:
        (version,) = pin.specifier
        assert wanted.specifier.contains(version.version), f"{pin} is outside {wanted.specifier}"


def test_the_grader_has_a_range_and_stays_out_of_the_lock():
    (grader,) = [Requirement(line) for line in EXTRAS["lab"]]
    assert len(grader.specifier) > 0
    assert canonicalize_name(grader.name) not in pins()  # what CI installs stays as light as it is


def test_conda_takes_the_versions_of_the_lock():
    (pip,) = [d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    plain = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]
    # A package from conda would shadow the lock's.
    assert [re.match(r"[a-z]+", d)[0] for d in plain] == ["python", "pip"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]


def test_pythons_agree():
    required = SpecifierSet(PROJECT["requires-python"])
    assert required.contains(python_of_conda())
    workflows = ROOT / ".github" / "workflows"
    named = re.findall(r'"(3\.\d+)"', "".join(path.read_text() for path in workflows.glob("*.yml")))
    assert named
    assert all(required.contains(version) for version in named)
    assert python_of_conda() in named  # what conda users get is what the tests run on
    lowest = Version(re.search(r">=([\d.]+)", PROJECT["requires-python"])[1])
    assert str(lowest) in named


def test_the_range_admits_a_machine_that_has_torch_2_11():
    (torch,) = [Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == "torch"]
    assert torch.specifier.contains("2.11.0")


def test_the_citation_names_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
