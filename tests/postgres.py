"""A real PostgreSQL on a free port of loopback, with a password, in a folder of the session."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


def _programs():
    """Return the folder of ``initdb`` and ``postgres``; Debian keeps them off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _unprivileged():
    """Return the words before a command that make it run as somebody else than root."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv (util-linux) is missing")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


class Postgres:
    """A running server; `database` makes a fresh database and returns its address."""

    def __init__(self, port, password):
        self.port, self.password = port, password
        self._n = 0

    def database(self, driver="postgresql+psycopg2"):
        import psycopg2

        self._n += 1
        name = f"test{self._n}"
        connection = psycopg2.connect(self.url("postgres"))
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        return self.url(name, driver)

    def url(self, name, driver="postgresql"):
        return f"{driver}://compass:{self.password}@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres():
    """A server with scram authentication and the user ``compass``."""
    pytest.importorskip("psycopg2", reason="needs the extra `postgres`")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    before = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="compass-postgres-"))
    server = None
    try:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        if before:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres")
        data = folder / "data"
        initdb = [programs / "initdb", "-D", data, "-U", "compass", "-A", "scram-sha-256", "-N"]
        initdb += [f"--pwfile={folder / 'password'}"]
        subprocess.run([*before, *initdb], cwd=folder, check=True, capture_output=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", f"port={port}"]
        settings += ["-c", f"unix_socket_directories={folder}", "-c", "max_connections=200"]
        with (folder / "log").open("wb") as log:
            command = [*before, programs / "postgres", "-D", data, *settings]
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        found = Postgres(port, password)
        _wait(found, server, folder / "log")
        yield found
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # its "fast" end: clients are disconnected
            server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(found, server, log):
    import psycopg2

    deadline = time.monotonic() + 120
    while True:
        try:
            psycopg2.connect(found.url("postgres")).close()
        except psycopg2.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        else:
            return
