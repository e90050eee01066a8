#!/usr/bin/env python3
"""Become one role of the image, or run any other command with the logins of its services.

    entry check            are all secrets there, strong and different? (compose asks first)
    entry prefect-server   Prefect's server on PostgreSQL, with a login
    entry mlflow-server    MLflow's server on PostgreSQL, with a login and its own artefact store
    entry worker           a Prefect worker of COMPASS_WORK_POOL
    entry bucket           make the bucket of COMPASS_STORE
    entry COMMAND …        that command

A secret comes from its variable (COMPASS_PREFECT_PASSWORD), or from the file that the variable with
_FILE names, or from /run/secrets/prefect_password; none is ever printed. One that is missing, well
known or short is refused (S18).
Standard library only.
"""

import configparser
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from urllib.parse import quote_plus, urlsplit

HERE = Path(__file__).resolve().parent
SECRETS_FOLDER = Path("/run/secrets")
SHORTEST_SECRET = 16
FEWEST_CHARACTERS = 8
WELL_KNOWN = re.compile(
    r"(?i)^(?:(?:change|replace|me|it|this|now|my|your|the|a|password|passwd|pass|secret|key|admin|user|"
    r"root|test|example|default|compass|prefect|mlflow|postgres|postgresql|minio|letmein|welcome|"
    r"qwerty|asdf|abc|xyz)|[\W_]|\d)+$"
)
"""Made of words that everybody tries, digits and punctuation alone."""

OF_SERVICES = ("postgres_password", "prefect_db_password", "prefect_password")
OF_MLFLOW = ("mlflow_db_password", "mlflow_password", "mlflow_secret_key")
OF_STORAGE = "s3_secret_key"
OPTIONAL_PREFIXES = ("COMPASS_", "PREFECT_", "MLFLOW_", "AWS_")
BUCKET_PATIENCE_SECONDS = 60


class RefusedError(Exception):
    """This cannot start; the message says what to change and holds no secret."""


# ------------------------------------------------------------------ secrets
def find_secret(name: str, env: Mapping[str, str], folder: Path) -> str | None:
    """Return secret `name`, or None where nobody gave one."""
    variable = f"COMPASS_{name.upper()}"
    if env.get(variable):
        return env[variable]
    path = Path(env.get(f"{variable}_FILE") or folder / name)
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"Secret {name} cannot be read from {path}: {error.strerror}.") from None


def check_secret(name: str, value: str) -> None:
    """Refuse a secret that a stranger would try first.

    Raises:
        RefusedError: it is short, repeats itself, is made of well-known words, or holds spaces.
    """
    problem = None
    if len(value) < SHORTEST_SECRET:
        problem = f"has {len(value)} characters, at least {SHORTEST_SECRET} are needed"
    elif WELL_KNOWN.match(value):
        problem = "is made of words and digits that everybody tries"
    elif len(set(value)) < FEWEST_CHARACTERS:
        problem = "repeats a few characters"
    elif re.search(r"\s", value):
        problem = "holds a space or a line break"
    if problem:
        raise RefusedError(
            f"Secret {name} {problem}. `python3 docker/make_env.py` makes one that nobody knows."
        )


def need_secret(name: str, env: Mapping[str, str], folder: Path) -> str:
    """Return secret `name`, checked."""
    value = find_secret(name, env, folder)
    if not value:
        raise RefusedError(
            f"Secret {name} is missing: neither COMPASS_{name.upper()} nor a file {folder / name}. "
            "`python3 docker/make_env.py` makes all of them."
        )
    check_secret(name, value)
    return value


def check_all(env: Mapping[str, str], folder: Path) -> int:
    """Check every secret of the compose file and that no two are equal; return how many."""
    names = [*OF_SERVICES, *OF_MLFLOW]
    if find_secret(OF_STORAGE, env, folder) or env.get("COMPASS_STORE", "").startswith("s3://"):
        names.append(OF_STORAGE)
    seen: dict[str, str] = {}
    for name in names:
        value = need_secret(name, env, folder)
        if value in seen:
            raise RefusedError(
                f"Secrets {seen[value]} and {name} are equal; each service needs its own."
            )
        seen[value] = name
    return len(names)


# ------------------------------------------------------------------ roles
def prefect_server(env: MutableMapping[str, str], folder: Path) -> list[str]:
    """Prefect's server: its database and its login."""
    _defaults(
        env,
        PREFECT_SERVER_API_HOST="0.0.0.0",
        PREFECT_SERVER_API_PORT="4200",
        PREFECT_SERVER_DATABASE_DRIVER="postgresql+asyncpg",
        PREFECT_SERVER_DATABASE_HOST=env.get("COMPASS_DATABASE_HOST", "postgres"),
        PREFECT_SERVER_DATABASE_PORT=env.get("COMPASS_DATABASE_PORT", "5432"),
        PREFECT_SERVER_DATABASE_USER="prefect",
        PREFECT_SERVER_DATABASE_NAME="prefect",
        PREFECT_HOME=str(Path(tempfile.gettempdir()) / "prefect"),
        # Prefect copies its pages before it serves them, by default into its own package.
        PREFECT_UI_STATIC_DIRECTORY=str(Path(tempfile.gettempdir()) / "prefect-ui"),
    )
    env["PREFECT_SERVER_DATABASE_PASSWORD"] = need_secret("prefect_db_password", env, folder)
    env["PREFECT_SERVER_API_AUTH_STRING"] = _login("prefect", env, folder)
    env.pop("PREFECT_API_URL", None)  # or the pages talk to that address
    return ["python", str(HERE / "prefect_server.py")]


def mlflow_server(env: MutableMapping[str, str], folder: Path) -> list[str]:
    """MLflow's server: its databases, its login and the key of its sessions."""
    _defaults(
        env,
        MLFLOW_HOST="0.0.0.0",
        MLFLOW_PORT="5000",
        MLFLOW_WORKERS="2",
        # By default a process that is silent for 5 s is killed: on a busy machine, while it starts.
        MLFLOW_UVICORN_OPTS="--timeout-worker-healthcheck 120",
        MLFLOW_ARTIFACTS_DESTINATION="/var/lib/mlflow/artifacts",
        MLFLOW_AUTH_ADMIN_USERNAME="compass",
    )
    password = quote_plus(need_secret("mlflow_db_password", env, folder))
    host = env.get("COMPASS_DATABASE_HOST", "postgres")
    port = env.get("COMPASS_DATABASE_PORT", "5432")
    database = f"postgresql+psycopg2://mlflow:{password}@{host}:{port}"
    env["MLFLOW_BACKEND_STORE_URI"] = f"{database}/mlflow"
    env["MLFLOW_AUTH_ADMIN_PASSWORD"] = need_secret("mlflow_password", env, folder)
    env["MLFLOW_FLASK_SERVER_SECRET_KEY"] = need_secret("mlflow_secret_key", env, folder)
    env["MLFLOW_AUTH_CONFIG_PATH"] = str(_auth_config(f"{database}/mlflow_auth"))
    _storage_login(env, folder)
    return ["mlflow", "server", "--app-name", "basic-auth", "--serve-artifacts"]


def worker(env: MutableMapping[str, str], folder: Path) -> list[str]:
    """A worker of the process pool; it answers on 8080 for as long as it hears from the server."""
    _defaults(
        env,
        COMPASS_WORK_POOL="compass",
        COMPASS_WORKER_LIMIT="2",
        PREFECT_HOME=f"{env['COMPASS_HOME']}/prefect",
        PREFECT_WORKER_WEBSERVER_HOST="127.0.0.1",
        PREFECT_WORKER_WEBSERVER_PORT="8080",
    )
    for name in ("prefect_password", "mlflow_password"):
        need_secret(name, env, folder)
    client(env, folder)
    start = ["prefect", "worker", "start", "--pool", env["COMPASS_WORK_POOL"], "--type", "process"]
    return [
        *start,
        "--limit",
        env["COMPASS_WORKER_LIMIT"],
        "--with-healthcheck",
        "--install-policy",
        "never",
    ]


def client(env: MutableMapping[str, str], folder: Path) -> None:
    """Give a command the logins of the services that it is told to talk to."""
    if env.get("PREFECT_API_URL") and find_secret("prefect_password", env, folder):
        env.setdefault("PREFECT_API_AUTH_STRING", _login("prefect", env, folder))
    if env.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        password = find_secret("mlflow_password", env, folder)
        if password:
            env.setdefault("MLFLOW_TRACKING_USERNAME", "compass")
            env.setdefault("MLFLOW_TRACKING_PASSWORD", password)
    _storage_login(env, folder)


def make_bucket(env: MutableMapping[str, str], folder: Path) -> str:
    """Make the bucket of COMPASS_STORE unless it is there, and return its name."""
    address = urlsplit(env.get("COMPASS_STORE", ""))
    if address.scheme != "s3" or not address.netloc:
        raise RefusedError("COMPASS_STORE is no s3://bucket/prefix, so there is no bucket to make.")
    _storage_login(env, folder)
    os.environ.update(env)
    import s3fs

    store = s3fs.S3FileSystem()
    give_up = time.monotonic() + BUCKET_PATIENCE_SECONDS
    while True:
        try:
            if not store.exists(address.netloc):
                store.mkdir(address.netloc)
            return address.netloc
        except (OSError, TimeoutError) as error:
            if time.monotonic() > give_up:
                raise RefusedError(
                    f"No answer from the storage server: {type(error).__name__}."
                ) from error
            time.sleep(2)


def _defaults(env: MutableMapping[str, str], **values: str) -> None:
    for name, value in values.items():
        env.setdefault(name, value)


def _login(service: str, env: Mapping[str, str], folder: Path) -> str:
    user = env.get(f"COMPASS_{service.upper()}_USER", "compass")
    return f"{user}:{need_secret(f'{service}_password', env, folder)}"


def _storage_login(env: MutableMapping[str, str], folder: Path) -> None:
    key = find_secret(OF_STORAGE, env, folder)
    if key and env.get("AWS_ENDPOINT_URL"):
        check_secret(OF_STORAGE, key)
        env.setdefault("AWS_ACCESS_KEY_ID", env.get("COMPASS_S3_USER", "compass"))
        env.setdefault("AWS_SECRET_ACCESS_KEY", key)


def _auth_config(database: str) -> Path:
    """Write the file that MLflow wants its users' database in, for this user's eyes only."""
    values = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": database.replace("%", "%%"),
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        # Checking a password costs half a second of a core by design, for every request of a run
        # anew. Each server process remembers one that was right for this long.
        "auth_cache_ttl_seconds": "60",
    }
    config = configparser.ConfigParser()
    config["mlflow"] = values
    path = Path(tempfile.mkdtemp(prefix="mlflow-")) / "auth.ini"
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        config.write(file)
    return path


ROLES: dict[str, Callable[[MutableMapping[str, str], Path], list[str]]] = {
    "prefect-server": prefect_server,
    "mlflow-server": mlflow_server,
    "worker": worker,
}


def plan(arguments: list[str], env: MutableMapping[str, str], folder: Path) -> list[str]:
    """Return the command to become, after filling `env`; empty when there is nothing to start."""
    for name in [n for n, value in env.items() if not value and n.startswith(OPTIONAL_PREFIXES)]:
        del env[name]  # an empty variable of a compose file means "not set"
    role = arguments[0] if arguments else ""
    if role == "check":
        print(f"compass: {check_all(env, folder)} secrets are strong and different")
        return []
    if role == "bucket":
        print(f"compass: bucket {make_bucket(env, folder)} is there")
        return []
    if role in ROLES:
        env["COMPASS_ROLE"] = role
        command = ROLES[role](env, folder)
        (Path(tempfile.gettempdir()) / "compass-role").write_text(role, encoding="utf-8")
        return [*command, *arguments[1:]]
    if not arguments:
        raise RefusedError(
            f"Say what to run: one of {', '.join(ROLES)}, check, bucket, or a command."
        )
    client(env, folder)
    return arguments


def main() -> None:
    """Become what the arguments say."""
    env = dict(os.environ)
    try:
        command = plan(sys.argv[1:], env, SECRETS_FOLDER)
    except RefusedError as problem:
        sys.exit(f"compass: {problem}")
    if not command:
        return
    # A secret given by variable has been handed on under the name its reader expects.
    for name in [*OF_SERVICES, *OF_MLFLOW, OF_STORAGE]:
        env.pop(f"COMPASS_{name.upper()}", None)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, env)
    except OSError as error:
        sys.exit(f"compass: cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
