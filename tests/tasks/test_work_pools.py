"""Work pools: the files, laid over the templates of the workers that are installed."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.utilities.schema_tools.validation import validate
from prefect.workers.base import BaseWorker

from compass_core.errors import ConfigError
from compass_core.version import __version__
from tasks.deployments import FOLDER
from tasks.work_pools import POOL_TYPES, base_job_template, read_pool_kind

PREFECTS_OWN = {"completions", "parallelism"}
"""Keys that Prefect's template has in the pod instead of the job; Kubernetes passes over them."""


@pytest.fixture
def folder(home, tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    return path


def configuration(kind, **variables):
    """Return what the worker makes of the pool's template and its job variables."""
    template = base_job_template(kind)
    values = {**kind.job_variables, **variables}
    validate(values, template["variables"], raise_on_error=True)
    worker = BaseWorker.get_worker_class_from_type(kind.type)
    assert worker is not None, f"no worker of type {kind.type} is installed"
    made = worker.job_configuration.from_template_and_values(
        base_job_template=template, values=values, client=SimpleNamespace()
    )
    return asyncio.run(made)


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_a_worker_of_the_type_accepts_the_pool(folder, kind):
    pytest.importorskip("prefect_docker")
    pytest.importorskip("prefect_kubernetes")
    made = configuration(read_pool_kind(FOLDER, kind, folder, name="news"))
    environment = made.env
    assert environment["COMPASS_DEPLOYMENT"] == "news"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert environment["COMPASS_HOME"]


def test_a_process_and_a_container_see_the_same_folders_under_the_same_names(home, folder):
    process = read_pool_kind(FOLDER, "process", folder)
    container = read_pool_kind(FOLDER, "docker", folder)
    assert process.folder == container.folder == str(folder)
    for kind in (process, container):
        assert kind.job_variables["env"]["COMPASS_HOME"] == str(home)
    volumes = container.job_variables["volumes"]
    assert f"{home}:{home}" in volumes
    assert f"{folder}:{folder}:ro" in volumes


def test_a_container_has_few_rights_and_the_owner_of_the_state(folder):
    pytest.importorskip("prefect_docker")
    made = configuration(read_pool_kind(FOLDER, "docker", folder))
    assert made.image == f"compass:{__version__}-cpu"
    assert made.container_create_kwargs["user"] == f"{os.getuid()}:{os.getgid()}"
    assert made.container_create_kwargs["cap_drop"] == ["ALL"]
    assert made.privileged is False
    other = read_pool_kind(FOLDER, "docker", folder, image="registry.local/compass:7-cuda")
    assert configuration(other).image == "registry.local/compass:7-cuda"


def test_a_kubernetes_job_is_one_that_kubernetes_knows(folder):
    pytest.importorskip("prefect_kubernetes")
    made = configuration(read_pool_kind(FOLDER, "kubernetes", folder), gpu_limit="1")
    manifest = made.job_manifest
    pod = manifest["spec"]["template"]["spec"]
    for key in PREFECTS_OWN:
        pod.pop(key, None)
    (container,) = pod["containers"]
    container["env"] = [{"name": k, "value": v} for k, v in container["env"].items()]
    assert asyncio.run(understood(manifest)) == manifest
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["envFrom"][0]["secretRef"] == {"name": "compass", "optional": True}
    assert pod["securityContext"]["runAsNonRoot"] is True
    claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "compass-home"}]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["COMPASS_HOME"] in mounts


async def understood(manifest):
    """Return what is left of a manifest once the client's models have read it."""
    from kubernetes_asyncio.client import ApiClient

    async with ApiClient() as client:
        answer = SimpleNamespace(data=json.dumps(manifest))
        job = client.deserialize(answer, "V1Job")
        return client.sanitize_for_serialization(job)


def test_a_job_variable_that_no_worker_knows_is_refused(folder, tmp_path):
    files = tmp_path / "deployments"
    shutil.copytree(FOLDER, files)
    path = files / "pools" / "process.yaml"
    path.write_text(path.read_text("utf-8").replace("  env: {}", "  env: {}\n  imag: x"), "utf-8")
    with pytest.raises(ConfigError, match=r"no job variable imag; they know .*working_dir"):
        base_job_template(read_pool_kind(files, "process", folder))


def test_an_unknown_key_of_a_pool_is_refused(folder, tmp_path):
    files = tmp_path / "deployments"
    shutil.copytree(FOLDER, files)
    path = files / "pools" / "docker.yaml"
    path.write_text(path.read_text("utf-8") + "templat: {}\n", "utf-8")
    with pytest.raises(ConfigError, match="unknown key 'templat'"):
        read_pool_kind(files, "docker", folder)


def test_an_unknown_type_names_the_known_ones():
    with pytest.raises(ConfigError, match="process, docker, kubernetes"):
        read_pool_kind(FOLDER, "cloud-run", Path.cwd())
