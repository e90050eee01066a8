"""The image without an engine: its installation and its roles as processes of this machine.

What is run comes from the files themselves: the COPY, RUN and ENV lines of the Dockerfile and the
services of compose.yaml. Only folders, ports and host names are other ones.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

from tests.docker.rules import ROOT, chain, copied, load_compose, read_env, read_stages
from tests.real_server import free_port

LIBRARY = Path("/usr/lib/postgresql")


class Image:
    """The runtime stage under a folder of its own instead of /opt/compass."""

    def __init__(self, folder, dockerfile):
        self.folder = folder
        self.stages = read_stages(dockerfile)
        self.places = {
            "/opt/compass": str(folder / "opt"),
            "/var/lib/compass": str(folder / "home"),
            "/var/lib/mlflow": str(folder / "mlflow"),
        }
        self.environment = self._environment()

    def here(self, text):
        for there, place in self.places.items():
            text = text.replace(there, place)
        return text

    def copy(self):
        """Do what the COPY lines of both stages do."""
        for source, destination, _ in copied(self.stages):
            target = Path(self.here(destination))
            origin = ROOT / source
            if origin.is_dir():
                skip = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(origin, target, ignore=skip, dirs_exist_ok=True)
                continue
            target = target / origin.name if destination.endswith("/") else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, target)
        for script in ("entry", "health"):
            Path(self.here(f"/opt/compass/bin/{script}")).chmod(0o755)
        for place in ("home", "mlflow", "tmp"):
            (self.folder / place).mkdir()

    def install(self, log):
        """Run the RUN line of the CPU build."""
        (run,) = [
            value for stage in chain(self.stages, "locked-cpu") for value in stage.values("RUN")
        ]
        arguments = dict(
            value.partition("=")[::2]
            for stage in chain(self.stages, "locked-cpu")
            for value in stage.values("ARG")
        )
        command = re.sub(r"--mount=\S+\s*", "", self.here(run))
        command = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]].strip('"'), command)
        words = shlex.split(command)
        assert words[0] == "python3"
        with log.open("ab") as said:
            subprocess.run([sys.executable, *words[1:]], check=True, stdout=said, stderr=said)

    def _environment(self):
        found = {}
        for stage in chain(self.stages, "cpu"):
            for value in stage.values("ENV"):
                for name, setting in (word.split("=", 1) for word in shlex.split(value)):
                    found[name] = self.here(setting)
        found["PATH"] += os.pathsep + str(Path(sys.executable).parent)
        found["HOME"] = found["TMPDIR"] = str(self.folder / "tmp")
        return found | {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}


class Stack:
    """The services of compose.yaml as processes, each with its own secrets and its own /tmp."""

    def __init__(self, image, secrets):
        self.image, self.secrets, self.running = image, secrets, {}
        text = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
        self.ports = {name: free_port() for name in ("postgres", "prefect", "mlflow", "worker")}
        self.services = load_compose(text, read_env(ROOT / "docker" / ".env.example"))["services"]

    def url(self, service, path=""):
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def environment(self, service):
        folder = self.image.folder / "tmp" / service
        folder.mkdir(exist_ok=True)
        wanted = self.services[service].get("environment") or {}
        text = {name: self._local(str(value)) for name, value in wanted.items()}
        files = {
            f"COMPASS_{name.upper()}_FILE": str(self.secrets / name)
            for name in self.services[service].get("secrets", [])
        }
        ports = {
            "COMPASS_DATABASE_HOST": "127.0.0.1",
            "COMPASS_DATABASE_PORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.ports["prefect"]),
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(self.ports["mlflow"]),
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["worker"]),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        own = {"HOME": str(folder), "TMPDIR": str(folder)}
        return self.image.environment | text | files | ports | own

    def _local(self, value):
        places = {
            "//prefect:4200": self.url("prefect")[5:],
            "//mlflow:5000": self.url("mlflow")[5:],
            "127.0.0.1:4200": self.url("prefect")[7:],
            "127.0.0.1:5000": self.url("mlflow")[7:],
        }
        for there, here in places.items():
            value = value.replace(there, here)
        return self.image.here(value)

    def run(self, service, *arguments):
        """Run a command in the place of a service and return what it says."""
        command = [self.image.here("/opt/compass/bin/entry"), *arguments]
        answer = subprocess.run(
            command,
            env=self.environment(service),
            cwd=self.image.here("/opt/compass/app"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def start(self, service):
        """Start a service with its own command."""
        entry = self.image.here("/opt/compass/bin/entry")
        with (self.image.folder / f"{service}.log").open("ab") as said:
            self.running[service] = subprocess.Popen(
                [entry, *self.services[service]["command"]],
                env=self.environment(service),
                cwd=self.image.here("/opt/compass/app"),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def is_well(self, service):
        """Run the health check of the compose file."""
        _, *command = self.services[service]["healthcheck"]["test"]
        command[0] = self.image.here(f"/opt/compass/bin/{command[0]}")
        environment = self.environment(service)
        return (
            subprocess.run(command, env=environment, check=False, capture_output=True).returncode
            == 0
        )

    def stop(self, service, number=signal.SIGTERM, seconds=60):
        """Stop a service as the engine does: a signal to its first process. Return the seconds."""
        process, started = self.running.pop(service), time.monotonic()
        process.send_signal(number)
        process.wait(seconds)
        return time.monotonic() - started

    def end(self):
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


class Database:
    """Debian's PostgreSQL, filled as the official image does it: its arguments, then our script."""

    def __init__(self, folder, port, arguments, secrets):
        self.folder, self.port, self.arguments, self.secrets = folder, port, arguments, secrets
        self.tools = max(LIBRARY.glob("*/bin"), key=lambda path: int(path.parent.name))

    def start(self):
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        password = self.folder / "password"
        self._run(
            "sh", "-c", f"umask 077; cat > {password}", stdin=self._secret("postgres_password")
        )
        words = ["-D", self.folder / "data", "-U", "postgres", f"--pwfile={password}"]
        self._run(self.tools / "initdb", *words, *shlex.split(self.arguments))
        settings = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c fsync=off"
        settings += f" -c unix_socket_directories={self.folder}"
        log = ["-w", "-l", self.folder / "log"]
        self._run(self.tools / "pg_ctl", "-D", self.folder / "data", *log, "-o", settings, "start")
        environment = os.environ | {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "PGHOST": str(self.folder),
            "PGPORT": str(self.port),
            "PGPASSWORD": self._secret("postgres_password"),
            "COMPASS_SECRETS_FOLDER": str(self.secrets),
        }
        script = ["sh", str(ROOT / "docker" / "postgres-init.sh")]
        subprocess.run(script, env=environment, check=True, capture_output=True)

    def stop(self):
        """End the server at once; do nothing where it has ended already."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run(self.tools / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def ask(self, user, database, password=""):
        """Connect and return the error, or an empty text."""
        command = [self.tools / "psql", "-w", "-h", "127.0.0.1", "-p", str(self.port)]
        command += ["-U", user, "-d", database, "-c", "select 1"]
        environment = os.environ | {"PGPASSWORD": password}
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        return answer.stderr

    def _secret(self, name):
        return (self.secrets / name).read_text()

    def _run(self, *command, stdin=None):
        as_owner = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        words = [*as_owner, *map(str, command)]
        subprocess.run(words, input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)


def ask(url, method="GET", login="", headers=None, body=None):
    """Send a request and return (status, body)."""
    request = urllib.request.Request(url, method=method, data=body, headers=headers or {})
    if login:
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
