"""Other people's clients, installed by their own package managers into a place that later runs find again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cascade_state.postgres.file_lock import FileLock

__all__ = ["node_client", "python_client"]

_PYTHON = ("integresql-client-python", "0.9.2")
_NODE = ("@devoxa/integresql-client", "2.1.1")
_INSTALL_SECONDS = 50.0
_WAIT_SECONDS = 55.0


def python_client() -> Path:
    """Returns a directory for PYTHONPATH; skips the test when the package cannot be had."""
    name, version = _PYTHON
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
    return _installed(f"{name}-{version}-{sys.version_info[0]}.{sys.version_info[1]}", f"{name}=={version}", command)


def node_client() -> Path:
    """Returns a directory with `node_modules`; skips the test when the package cannot be had."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("SKIP-FOREIGN-CLIENT: there is no Node.js here")
    name, version = _NODE
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]
    return _installed(f"{name.replace('/', '-')}-{version}", f"{name}@{version}", command)


def _installed(directory: str, package: str, command: list[str]) -> Path:
    """Installs under another name and renames: a killed attempt leaves nothing that looks finished."""
    parent = Path(tempfile.gettempdir()) / f"cascade_state-foreign-clients-{os.geteuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.geteuid():
        pytest.skip(f"SKIP-FOREIGN-CLIENT: {parent} is somebody else's")
    target = parent / directory
    lock = FileLock(parent / "install.lock")
    assert lock.acquire(timeout=_WAIT_SECONDS)
    try:
        if not target.exists():
            scratch = Path(tempfile.mkdtemp(dir=parent))
            try:
                subprocess.run(
                    [*command, str(scratch), package], capture_output=True, check=True, timeout=_INSTALL_SECONDS
                )
                scratch.rename(target)
            except (OSError, subprocess.SubprocessError):
                pytest.skip(f"SKIP-FOREIGN-CLIENT: {package} cannot be installed here")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        lock.release()
    return target
