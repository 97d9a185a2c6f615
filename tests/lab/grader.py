"""nbgrader, run as a user runs it: in an activated environment, since it calls `alembic` by its name."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

NBGRADER = pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None,
                              reason="nbgrader is not installed: make grader")


def nbgrader(course: Path, *words: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=course, env={**os.environ, "PATH": path},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
