"""A real S3-protocol server on loopback for the tests: moto's, in a process of its own, with its own port."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs

KEY, SECRET = "KEYOFTHETEST", "secret-that-must-be-shown-nowhere"
BUCKET = "bucket"


@contextmanager
def served() -> Iterator[s3fs.S3FileSystem]:
    """Start the server and point the environment to it; yields its file system with an empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            _await(port, server)
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no other credentials than these
            patch.setenv("AWS_CONFIG_FILE", os.devnull)
            patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
            s3fs.S3FileSystem.clear_instance_cache()
            files = s3fs.S3FileSystem(use_listings_cache=False)
            files.mkdir(BUCKET)
            yield files
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.kill()


def upload(files: s3fs.S3FileSystem, folder: Path, key: str) -> str:
    """Copy a folder into the bucket; returns its URL."""
    files.put(f"{folder}/", f"{BUCKET}/{key}/", recursive=True)
    return f"s3://{BUCKET}/{key}"


def objects(files: s3fs.S3FileSystem, key: str) -> dict[str, tuple[str, str]]:
    """Every object below a key: content hash and time."""
    found = files.find(f"{BUCKET}/{key}", detail=True)
    files_only = {name: entry for name, entry in found.items() if entry["type"] == "file"}
    return {name: (entry["ETag"], str(entry["LastModified"])) for name, entry in files_only.items()}


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "moto's server ended; is moto[s3] with flask installed?"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("moto's server did not come up")
