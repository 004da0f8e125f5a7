"""Where files lie: in local folders, or in an object store behind a URL that fsspec understands (s3://…).

A place is a ``pathlib.Path`` or, for a URL, universal_pathlib's, which has the same methods. What differs
stands here. A local file or folder is written beside its place and renamed. An object store cannot rename
and has no folders; there, an upload shows an object whole or not at all, and the metadata of a Zarr group's
root are uploaded last: a group without them is not there yet.

Credentials and endpoint come from the environment of each process (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, …) and are kept nowhere.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
import fsspec.config

from pipeline.errors import UserError

_ROOT = ("zarr.json", ".zgroup")
"""What makes a folder a Zarr group, v3 or v2."""

# Listings must be those of now: other processes write as well.
fsspec.config.conf.setdefault("s3", {})["use_listings_cache"] = False

_REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
"""What stores say of a conditional PUT where the file is there, or another is just being written."""


def location(text: str) -> Path:
    """The place that a user names: a local path, or a URL.

    Raises:
        UserError: The URL holds credentials, or a package for it is missing.
    """
    if text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    if "://" not in text:
        return Path(text)
    check_url(text)
    try:
        from upath import UPath

        place = UPath(text.rstrip("/"))
        _ = place.fs
    except ImportError as error:
        raise UserError(f"{text}: {missing_package(error)}") from error
    except ValueError as error:
        raise UserError(f"{text}: cannot be used as a URL: {error}") from error
    return cast(Path, place)


def check_url(url: str) -> None:
    """Refuse a URL with credentials, which would be shown and stored with it."""
    scheme, _, rest = url.partition("://")
    secret, _, rest = rest.partition("/")[0].rpartition("@")
    if secret:
        raise UserError(
            f"{scheme}://…@{rest}: a URL must not hold credentials; put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def missing_package(error: ImportError) -> str:
    """What to install when a URL needs a package that is not there."""
    return f"{error}; for s3:// URLs: pip install s3fs universal_pathlib"


def is_local(path: Path) -> bool:
    """Whether a place lies in the file system of this machine."""
    return isinstance(path, Path)


def ask(url: str) -> None:
    """Raise the store's error if it does not answer: one request, where Zarr has several under way."""
    store, key = fsspec.url_to_fs(url)
    store.exists(key)


def missing_bucket(url: str) -> str | None:
    """The bucket of a URL if it is what is missing."""
    if not url.startswith("s3://"):
        return None
    store, key = fsspec.url_to_fs(url)
    bucket = str(key).partition("/")[0]
    try:
        return None if store.exists(bucket) else bucket
    except OSError:  # not for us to know
        return None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a local file to write; it appears under ``path`` whole at the end, or not at all."""
    if not is_local(path):
        with workshop(path) as folder:
            yield folder / path.name
        return
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())  # or a power cut may leave an empty file in its place
    os.replace(partial, path)


@contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """Give a local folder for making a file of the name of ``path``, which appears there at the end."""
    beside = path.parent if is_local(path) else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{path.name}.") as folder:
        yield Path(folder)
        made = Path(folder) / path.name
        if is_local(path):
            os.replace(made, path)
        else:
            _upload(made, path)


@contextmanager
def laid_out(path: Path) -> Iterator[Path]:
    """Give a local folder to lay out a Zarr group in, which appears under ``path`` at the end.

    For metadata and small arrays: chunks that workers write later go straight to their places.
    """
    if is_local(path):
        partial = path.with_name(f"{path.name}.partial")
        yield partial
        partial.rename(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        remove(path)  # half of one that was interrupted
        parts = [part.relative_to(folder) for part in Path(folder).rglob("*") if part.is_file()]
        for part in sorted(parts, key=lambda part: str(part) in _ROOT):
            _upload(folder / part, path / part.as_posix())


def has_group(path: Path) -> bool:
    """Whether a Zarr group is there, whole as ``laid_out`` leaves it."""
    return path.exists() if is_local(path) else any((path / name).exists() for name in _ROOT)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a local file with the content of ``path``, for libraries that read no URLs.

    Raises:
        FileNotFoundError: There is none.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        _store(path).get_file(_key(path), str(copy))
        yield copy


def make_folder(path: Path, parents: bool = False) -> None:
    """Make a folder unless it is there; an object store has none."""
    if is_local(path):
        path.mkdir(parents=parents, exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if is_local(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        _store(path).rm(_key(path), recursive=True)


def names(folder: Path) -> list[str]:
    """Names of what lies in a folder; none if it is not there."""
    if is_local(folder):
        return os.listdir(folder) if folder.exists() else []
    try:
        found = _store(folder).ls(_key(folder), detail=False)
    except FileNotFoundError:
        return []
    # Consoles make an empty object to show a folder.
    return [key.rpartition("/")[2] for key in found if not key.endswith("/")]


def mark(path: Path) -> None:
    """Write an empty file."""
    if is_local(path):
        path.touch()
    else:
        _store(path).pipe_file(_key(path), b"")


def create(path: Path, text: str) -> bool:
    """Write a file unless it is there: of two at once, one does it, and the other is told False.

    S3 and its like decide that themselves (a conditional PUT). A store that does not know the condition
    ignores or refuses it.
    """
    if not is_local(path):
        try:
            _store(path).pipe_file(_key(path), text.encode(), mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _said(error) in _REFUSED:
                return False
            raise
        return True
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return True


def _said(error: OSError) -> str | None:
    """The code in a store's own answer, if that is what an error comes from."""
    answer: dict[str, Any] = getattr(error.__cause__, "response", {})
    code: str | None = answer.get("Error", {}).get("Code")
    return code


def touch(path: Path, text: str) -> None:
    """Give a file that holds ``text`` the time of now; an object is written again for that."""
    if is_local(path):
        os.utime(path)
    else:
        _store(path).pipe_file(_key(path), text.encode())


def touched_ns(path: Path) -> int:
    """When a file was last written or touched, ns by the clock of where it lies; 0 if it is gone."""
    if not is_local(path):
        try:
            return int(_store(path).modified(_key(path)).timestamp() * 1e9)
        except FileNotFoundError:
            return 0
    try:
        with path.open() as file:  # opened, so that a file server is asked anew
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _upload(made: Path, path: Path) -> None:
    _store(path).put_file(str(made), _key(path))


def _store(path: Path) -> Any:
    return cast(Any, path).fs


def _key(path: Path) -> str:
    return str(cast(Any, path).path)
