"""What a Dockerfile and a compose file must keep to, as functions that return what breaks it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
SECRET_NAME = re.compile(r"(?i)passw|secret|token|api_?key|credential|private")
BUILD_TOOLS = re.compile(r"\b(?:gcc|g\+\+|make|build-essential|python3-dev|cmake|git)\b")
PINNED = re.compile(
    r"^[^\s:@]+(?:/[^\s:@]+)*:(?!latest\b)[\w][\w.-]*\d[\w.-]*(?:@sha256:[0-9a-f]{64})?$"
)


# ------------------------------------------------------------------ Dockerfile
@dataclass
class Instruction:
    """One instruction with its continuation lines joined."""

    word: str
    value: str
    line: int


@dataclass
class Stage:
    """What stands between two FROM lines."""

    name: str
    base: str
    instructions: list

    def values(self, word):
        return [i.value for i in self.instructions if i.word == word]


def read_instructions(text):
    found, parts, start = [], [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start or number
        parts.append(line.rstrip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            word, _, value = " ".join(parts).partition(" ")
            found.append(Instruction(word.upper(), value.strip(), start))
            parts, start = [], 0
    return found


def read_stages(text):
    """Return the stages, arguments in FROM lines replaced by their defaults."""
    stages, arguments = [], {}
    for instruction in read_instructions(text):
        if instruction.word == "ARG" and not stages:
            name, _, value = instruction.value.partition("=")
            arguments[name] = value
        elif instruction.word == "FROM":
            base, _, name = instruction.value.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], ""), base)
            stages.append(Stage(name.strip(), base.strip(), []))
        elif stages:
            stages[-1].instructions.append(instruction)
    return stages


def chain(stages, target):
    """Return the stages that `target` consists of, from the outermost base to itself."""
    by_name = {stage.name: stage for stage in stages}
    found = [by_name[target]]
    while found[0].base in by_name:
        found.insert(0, by_name[found[0].base])
    return found


def last(stages, target, word):
    values = [value for stage in chain(stages, target) for value in stage.values(word)]
    return values[-1] if values else ""


def copied(stages):
    """Return (source, destination, stage) of every COPY from the build context."""
    for stage in stages:
        for value in stage.values("COPY"):
            words = [word for word in shlex.split(value) if not word.startswith("--chmod")]
            if words[0].startswith("--from"):
                continue
            for source in words[:-1]:
                yield source, words[-1], stage.name


def is_ignored(path, lines):
    """Apply .dockerignore to a path: the last pattern that matches it or a parent decides."""
    ignored = False
    for line in lines:
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = [PurePosixPath(path), *PurePosixPath(path).parents]
        deep = pattern.removeprefix("**/")
        if any(n.match(deep) if deep != pattern else _equals(n, pattern) for n in names[:-1]):
            ignored = not line.startswith("!")
    return ignored


def _equals(path, pattern):
    return (pattern == "*" and len(path.parts) == 1) or str(path) == pattern


def dockerfile_problems(text, targets=("cpu", "cuda"), root=ROOT):
    """Return every broken rule, one sentence each."""
    stages = read_stages(text)
    names = [stage.name for stage in stages]
    return [
        *_stage_problems(stages, names, targets),
        *_instruction_problems(text),
        *_copy_problems(stages, names, root),
        *[p for target in targets if target in names for p in _target_problems(stages, target)],
    ]


def _stage_problems(stages, names, targets):
    for target in targets:
        if target not in names:
            yield f"no stage is called {target}"
    for stage in stages:
        if not stage.name:
            yield f"a stage from {stage.base} has no name"
        if stage.base not in names and not PINNED.match(stage.base):
            yield f"base image {stage.base} is not pinned"
        used = any(s.base == stage.name for s in stages) or any(
            f"--from={stage.name}" in value for s in stages for value in s.values("COPY")
        )
        if not used and stage.name not in targets:
            yield f"stage {stage.name} is not used"


def _instruction_problems(text):
    for i in read_instructions(text):
        checks = {
            "ADD; COPY says what it does, a URL has no checksum": i.word == "ADD",
            f"{i.word} is not in exec form, so signals end at a shell": i.word
            in ("CMD", "ENTRYPOINT")
            and not i.value.startswith("["),
            "HEALTHCHECK is not in exec form": i.word == "HEALTHCHECK" and "CMD [" not in i.value,
            "downloads without the lock": i.word == "RUN"
            and re.search(r"\b(curl|wget)\b", i.value),
            "pip outside docker/install.py, so outside the lock": i.word == "RUN"
            and re.search(r"\bpip3? install\b", i.value),
        }
        yield from (f"line {i.line}: {problem}" for problem, found in checks.items() if found)
        if i.word in ("ENV", "ARG"):
            names = re.findall(r"(?:^|\s)(\w+)(?==|$)", i.value)
            secret = filter(SECRET_NAME.search, names)
            yield from (f"line {i.line}: {name} would be kept in the image" for name in secret)
        if i.word == "RUN" and "apt-get install" in i.value:
            yield from _apt_problems(i)


def _apt_problems(i):
    if "rm -rf /var/lib/apt/lists/*" not in i.value:
        yield f"line {i.line}: package lists stay in the layer"
    if "--no-install-recommends" not in i.value:
        yield f"line {i.line}: recommended packages come too"
    wanted = i.value.split("apt-get install", 1)[1].split("&&")[0]
    for word in shlex.split(wanted):
        if not word.startswith("-") and "=" not in word:
            yield f"line {i.line}: {word} has no version"


def _copy_problems(stages, names, root):
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source, _, stage in copied(stages):
        if not (root / source).exists():
            yield f"stage {stage} copies {source}, which does not exist"
        elif is_ignored(source, lines):
            yield f"stage {stage} copies {source}, which .dockerignore hides"
    for stage in stages:
        for name in re.findall(r"--from=(\S+)", " ".join(stage.values("COPY"))):
            if name not in names:
                yield f"stage {stage.name} copies from {name}, which is no stage"


def _target_problems(stages, target):
    user = last(stages, target, "USER")
    if not re.fullmatch(r"[1-9]\d{3,}(?::[1-9]\d{3,})?", user):
        yield f"{target} runs as {user or 'root'}, not as a fixed number above 999"
    for word in ("HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL", "LABEL"):
        if not last(stages, target, word):
            yield f"{target} has no {word}"
    runs = " ".join(value for s in chain(stages, target) for value in s.values("RUN"))
    if BUILD_TOOLS.search(runs):
        yield f"{target} has build tools: {BUILD_TOOLS.search(runs)[0]}"


# ------------------------------------------------------------------ compose
class MissingVariableError(Exception):
    """`${NAME:?message}` without a value, as compose itself refuses it."""


def interpolate(text, env):
    """Replace `$$`, `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(match):
        if match[0] == "$$":
            return "$"
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if env.get(name):
            return env[name]
        if kind == ":?":
            raise MissingVariableError(rest)
        return rest or ""

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}", value, text)


def read_env(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def load_compose(text, env):
    return yaml.safe_load(interpolate(text, env))


def compose_problems(compose):
    """Return every broken rule of S15 and G30, one sentence each."""
    found = []
    for name, service in compose["services"].items():
        found += [f"{name}: {problem}" for problem in _service_problems(name, service, compose)]
    if not compose.get("networks", {}).get("inside", {}).get("internal"):
        found.append("network inside has a way out")
    found += [
        f"secret {name} is no file of its own"
        for name, secret in compose.get("secrets", {}).items()
        if not str(secret.get("file", "")).endswith(f"/{name}")
    ]
    return found


def _service_problems(name, service, compose):
    image = service.get("image", "")
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    shares = service.get("privileged") or service.get("pid") or service.get("ipc")
    serves = service.get("restart") != "no"
    checks = {
        f"image {image} is not pinned": not PINNED.match(image),
        "a foreign image without a digest": "compass" not in image and "@sha256:" not in image,
        "publishes a port": service.get("ports") and name not in ("prefect", "mlflow"),
        "keeps capabilities": service.get("cap_drop") != ["ALL"],
        "may gain privileges": service.get("security_opt") != ["no-new-privileges:true"],
        "root file system is writable": service.get("read_only") is not True,
        "may run as root": not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user", ""))),
        "shares the host": shares or service.get("network_mode") == "host",
        "is on the default network": not service.get("networks")
        and service.get("network_mode") not in ("none", "host"),
        "has no limits": not {"cpus", "memory", "pids"} <= limits.keys(),
        "is not started again": service.get("restart") not in ("unless-stopped", "no"),
        "has no health check": serves and not service.get("healthcheck", {}).get("test"),
    }
    yield from (problem for problem, found in checks.items() if found)
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"port {port} is published off loopback"
    yield from _secret_problems(service, compose)
    yield from _wiring_problems(service, compose)


def _secret_problems(service, compose):
    for variable, value in (service.get("environment") or {}).items():
        holds = SECRET_NAME.search(variable) and not str(value).startswith("/run/secrets/")
        if holds or re.search(r"://[^/\s:]+:[^/\s@]+@", str(value)):
            yield f"{variable} holds a secret"
    for secret in service.get("secrets", []):
        if secret not in compose.get("secrets", {}):
            yield f"secret {secret} is not declared"


def _wiring_problems(service, compose):
    for volume in service.get("volumes", []):
        source = str(volume).split(":")[0]
        if "docker.sock" in source:
            yield "holds the engine's socket"
        if not source.startswith((".", "/")) and source not in compose.get("volumes", {}):
            yield f"volume {source} is not declared"
    for other, how in (service.get("depends_on") or {}).items():
        if other not in compose["services"]:
            yield f"waits for {other}, which is no service"
        elif how.get("condition") not in ("service_healthy", "service_completed_successfully"):
            yield f"does not wait until {other} is well"
