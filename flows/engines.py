"""Where the languages of a run work: threads of this process, or a Dask or Ray cluster.

Languages are Prefect tasks on every engine, so a run looks the same on the server. Each engine
bounds them by `execution.max_parallel`, and turns a failure into that language's outcome.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from compass_core.config import ExecutionConfig
from compass_core.errors import ConfigError, TransientError
from flows.fanout import check_fan_out
from flows.language_dag import Shared
from flows.outcomes import Key, collect, language_of, outcome_of
from tasks.caching import as_it_is
from tasks.compute import kill_trainers
from tasks.interruption import request_stop
from tasks.limits import check_training_limit
from tasks.progress import beat
from tasks.workers import News, Site, open_site, travelling

_PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}
_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 10.0
_RAY_OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Only references travel, so Ray's default (30 % of the memory) would be kept for nothing."""


def check_engine(execution: ExecutionConfig, *, deployments: bool = False) -> None:
    """Check everything that a run needs of its engine, before anything expensive starts.

    Args:
        execution: The engine.
        deployments: Whether the flow can be spread over deployments.

    Raises:
        ConfigError: a package, cluster or limit is missing.
    """
    if execution.fan_out == "deployments":
        if not deployments:
            raise ConfigError(
                "execution.fan_out=deployments: only adapt-languages can be spread over "
                "deployments; use execution.task_runner=dask or ray for this flow."
            )
        check_fan_out(execution.language_deployment)
    package = _PACKAGES.get(execution.task_runner)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"execution.task_runner={execution.task_runner} needs a package that is not "
            f"installed: pip install 'compass-adapt[{execution.task_runner}]'",
            code="E66",
        )
    if execution.cluster_address:
        _check_address(execution)
    check_training_limit(execution)


def _check_address(execution: ExecutionConfig) -> None:
    address = execution.cluster_address
    parts = urlsplit(address)
    schemes = {"dask": ("tcp", "tls"), "ray": ("ray",)}[execution.task_runner]
    if parts.scheme not in schemes or not parts.hostname or not parts.port:
        wanted = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
        raise ConfigError(
            f"execution.cluster_address={address} is no address of {execution.task_runner}; "
            f"give {wanted}"
        )
    try:
        socket.create_connection((parts.hostname, parts.port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"execution.cluster_address={address}: nobody answers there ({error}). Start the "
            "cluster, or leave the address empty for one of this run's own."
        ) from None


def run_cells(
    body: Task[Any, dict[str, Any]],
    cells: Mapping[Key, Mapping[str, Any]],
    execution: ExecutionConfig,
    folder: Path,
    refused: Collection[tuple[str, int]] = (),
) -> dict[Key, dict[str, Any]]:
    """Run the task `body` for every cell on the run's engine; return the outcomes in their order.

    Args:
        body: Task of one language, with the parameters `config`, `shared` and `site`.
        cells: Parameters by language, or by language and seed.
        execution: The engine.
        folder: The run's.
        refused: Languages and seeds whose failure was reported when it was found.
    """
    if execution.task_runner == "local":
        pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(execution.max_parallel)
        with pool as runner, _work_ends_with_the_run():
            return collect({k: runner.submit(body, as_it_is(p)) for k, p in cells.items()}, refused)
    news = folder / "news"
    at_once = min(execution.max_parallel, len(cells))
    try:
        with _one_server_for_all(execution), open_engine(execution, at_once) as engine:
            site = open_site(news)
            remote = {key: _for_worker(given, site) for key, given in cells.items()}
            with News(news) as heard:
                outcomes = _run_remote(engine, body, remote, at_once, refused)
            for key, outcome in outcomes.items():
                if language_of(key) not in heard.heard and outcome["status"] != "failed":
                    beat(language_of(key), "adapt", "done", 1.0, "on another machine")
            return outcomes
    finally:
        shutil.rmtree(news, ignore_errors=True)


@contextlib.contextmanager
def _one_server_for_all(execution: ExecutionConfig) -> Iterator[None]:
    """Let workers on this machine use the temporary server of this command, if there is one.

    Each would start its own otherwise, which nobody sees and which outlives a killed worker.
    """
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if PREFECT_API_URL.value() or execution.cluster_address or not server.running:
        yield
        return
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield


@contextlib.contextmanager
def _work_ends_with_the_run() -> Iterator[None]:
    """Stop all work when the run is cancelled: the pool waits for its threads, which would go on.

    A worker cancels with SIGTERM to the whole process group. So the trainers are gone at once, and
    without this their languages would start them again, until the worker kills the run a minute on.
    """
    try:
        yield
    except BaseException:
        request_stop()
        kill_trainers()
        raise


def _for_worker(given: Mapping[str, Any], site: Site) -> dict[str, Any]:
    """Return a cell's parameters as they travel; a worker has one language, so one trainer."""
    config, shared = given["config"], given["shared"]
    one = {"trainers": min(config.execution.trainers, 1)}
    execution = config.execution.model_copy(update=one)
    if isinstance(shared, Shared):
        refused = {cell: travelling(error) for cell, error in shared.refused.items()}
        shared = replace(shared, refused=refused)
    config = config.model_copy(update={"execution": execution})
    return {**given, "config": config, "shared": shared, "site": site}


def _run_remote(
    engine: Engine,
    body: Task[Any, dict[str, Any]],
    cells: Mapping[Key, dict[str, Any]],
    at_once: int,
    refused: Collection[tuple[str, int]],
) -> dict[Key, dict[str, Any]]:
    """Keep `at_once` cells in flight until all are done; give up those in flight on the way out."""
    waiting = list(cells.items())
    flying: dict[Key, PrefectFuture[Any]] = {}
    outcomes: dict[Key, dict[str, Any]] = {}
    try:
        while waiting or flying:
            while waiting and len(flying) < at_once:
                key, parameters = waiting.pop(0)
                flying[key] = engine.runner.submit(body, parameters)
            for key, future in list(flying.items()):
                if engine.is_done(future):
                    outcomes[key] = outcome_of(key, flying.pop(key), refused)
            time.sleep(_POLL_SECONDS)
    finally:
        for future in flying.values():
            engine.give_up(future)
    return {key: outcomes[key] for key in cells}


# ------------------------------------------------------------------ engines
class Engine(Protocol):
    """A started cluster."""

    runner: TaskRunner[Any]

    def is_done(self, future: Any) -> bool:
        """Say whether a language has ended, in whatever way."""

    def give_up(self, future: Any) -> None:
        """Stop a language that is still running."""


@contextlib.contextmanager
def open_engine(execution: ExecutionConfig, at_once: int) -> Iterator[Engine]:
    """Connect to the cluster, or start one of `at_once` processes; stop what was started."""
    opened = _open_dask if execution.task_runner == "dask" else _open_ray
    with opened(execution.cluster_address, at_once) as engine:
        yield engine


class _Dask:
    def __init__(self, runner: TaskRunner[Any]) -> None:
        self.runner = runner

    def is_done(self, future: Any) -> bool:
        return bool(future.wrapped_future.done())

    def give_up(self, future: Any) -> None:
        future.wrapped_future.cancel(reason="The run was stopped.")


@contextlib.contextmanager
def _open_dask(address: str, at_once: int) -> Iterator[Engine]:
    from prefect_dask import DaskTaskRunner

    logging.getLogger("distributed").setLevel(logging.ERROR)
    if address:
        runner = DaskTaskRunner(address=address)
    else:
        runner = DaskTaskRunner(
            cluster_kwargs={
                "n_workers": at_once,
                "threads_per_worker": 1,
                "processes": True,
                "host": "127.0.0.1",
                "dashboard_address": None,
                "memory_limit": 0,  # trainers hold the memory, and Dask does not see them
                "silence_logs": logging.ERROR,
            }
        )
    with runner:
        with _ctrl_c_for_us_alone():
            threads = runner.client.nthreads()  # starts the cluster
        if any(number > 1 for number in threads.values()):
            raise ConfigError(
                f"The Dask workers at {address} have {max(threads.values())} threads each. A "
                "language needs a process of its own: start them with "
                "`dask worker --nthreads 1 --nworkers N`."
            )
        yield _Dask(runner)


@contextlib.contextmanager
def _ctrl_c_for_us_alone() -> Iterator[None]:
    """Let processes that are started in the block ignore Ctrl-C: it is their parent's business."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Ray:
    def __init__(self, runner: TaskRunner[Any]) -> None:
        self.runner = runner

    def is_done(self, future: Any) -> bool:
        import ray

        done, _ = ray.wait([future.wrapped_future], timeout=0)
        return bool(done)

    def give_up(self, future: Any) -> None:
        import ray

        ray.cancel(future.wrapped_future, force=True)


@contextlib.contextmanager
def _open_ray(address: str, at_once: int) -> Iterator[Engine]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = {
        "num_cpus": at_once,
        "include_dashboard": False,
        "object_store_memory": _RAY_OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    runner = RayTaskRunner(address=address or None, init_kwargs=quiet | ({} if address else own))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runner)
        except Exception as error:
            raise TransientError(
                f"Ray did not start or could not be reached ({error}). It gives itself 30 s, which "
                "a machine with too much to do exceeds. Run the same command again."
            ) from error
        # Ray hides the GPUs from a task that asks for none.
        gpus = float(ray.cluster_resources().get("GPU", 0.0))
        share = min(1.0, gpus / at_once)
        with remote_options(num_cpus=1, **({"num_gpus": share} if share else {})):
            yield _Ray(runner)
