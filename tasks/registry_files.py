"""Files of registered adapters: found, read back, hashed, restored.

An alias or a version number says which adapter is meant; only the hashes say that it is that one.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from compass_core.adapter_files import adapter_file_hashes, combined_sha256
from compass_core.errors import ModelError
from compass_core.storage import write_bytes
from tasks import tracking
from tasks.registry_reading import RegisteredAdapter, resolve


def download_adapter(name: str, alias_or_version: str, destination: Path) -> Path:
    """Bring an adapter to `destination` and return that folder, verified.

    Args:
        name: Registered model.
        alias_or_version: ``champion``, ``challenger``, ``previous`` or a version number.
        destination: Folder to create; an adapter already there is kept if it is the same one and
            replaced otherwise.

    Raises:
        ModelError: there is no such version (E53), or the files are not the registered ones (E29).
    """
    return fetch_adapter(resolve(name, alias_or_version), destination)


def fetch_adapter(version: RegisteredAdapter, destination: Path) -> Path:
    """Bring a version's files to `destination`: see `download_adapter`."""
    if destination.is_dir() and _is_adapter(destination, version.adapter_sha256):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with fetched(location(version)) as source:
            shutil.copytree(source, temporary)
        require_same(temporary, version.adapter_sha256, f"{version.name} version {version.version}")
        if destination.exists():
            shutil.rmtree(destination)
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return destination


def _is_adapter(folder: Path, sha256: str) -> bool:
    try:
        return combined_sha256(adapter_file_hashes(folder)) == sha256
    except ModelError:
        return False


def verify(version: RegisteredAdapter) -> None:
    """Hash the stored files of `version`; any difference is an error (E29)."""
    with fetched(location(version)) as folder:
        what = f"{version.name} version {version.version}"
        require_same(folder, version.adapter_sha256, what)


def require_same(folder: Path, sha256: str, what: str) -> None:
    """Raise ModelError (E29) unless `folder` holds the adapter called `sha256`."""
    advice = (
        "Run `compass adapt` again to restore it from the store, or `compass rollback` to serve "
        "the previous champion."
    )
    try:
        found = combined_sha256(adapter_file_hashes(folder))
    except ModelError as error:
        raise ModelError(f"{what} is damaged: {error.message} {advice}", code="E29") from error
    if found != sha256:
        raise ModelError(
            f"{what} is not what was registered: sha256 is {found[:12]}…, expected "
            f"{sha256[:12] or 'none'}…. {advice}",
            code="E29",
        )


def location(version: RegisteredAdapter) -> str:
    """Return where the files are; a home folder that was moved is found again by its layout."""
    with tracking.mlflow_errors(f"locate version {version.version} of {version.name}"):
        uri = str(tracking.client().get_model_version_download_uri(version.name, version.version))
    path = local_path(uri)
    if path is not None and not path.exists():
        moved = tracking.connection().artifact_root.joinpath(*path.parts[-4:])
        if moved.exists():
            return moved.as_uri()
    return uri


def local_path(uri: str) -> Path | None:
    """Return the folder behind `uri` where it is on this file system, else None."""
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


@contextlib.contextmanager
def fetched(uri: str) -> Iterator[Path]:
    """Give the files behind `uri` as a local folder: in place where they are local."""
    path = local_path(uri)
    if path is not None:
        yield path
        return
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="compass-adapter-") as scratch:
        with tracking.mlflow_errors("download the adapter"):
            where = download_artifacts(
                artifact_uri=uri,
                dst_path=scratch,
                tracking_uri=tracking.connection().tracking_uri,
            )
        yield Path(where)


def restore_if_damaged(version: RegisteredAdapter, folder: Path) -> None:
    """Write the files of `folder` over those stored for `version`, if these are not whole.

    Raises:
        ModelError: the stored files are still wrong afterwards (E29).
    """
    with contextlib.suppress(ModelError):
        verify(version)
        return
    uri = location(version)
    path = local_path(uri)
    if path is None:
        with tracking.mlflow_errors(f"restore version {version.version} of {version.name}"):
            client = tracking.client()
            source = client.get_model_version(version.name, version.version).source
            client.log_model_artifacts(source.removeprefix("models:/"), str(folder))
    else:
        if not path.exists():
            path = tracking.connection().artifact_root.joinpath(*path.parts[-4:])
        for file in folder.iterdir():
            write_bytes(path / file.name, file.read_bytes())
    verify(version)
