"""`compass deploy` on a real server: twice, beside another project, after an earlier release."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.client.orchestration import get_client

from compass_core.config import AdaptConfig
from compass_core.errors import ConfigError

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
POOL = "compass-applied"
CHANGES_EACH_TIME = {"updated", "updated_by", "version_id", "version_info", "last_polled", "status"}


def plain(value):
    """Leave out what the server writes itself."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in CHANGES_EACH_TIME}
    return [plain(item) for item in value] if isinstance(value, list) else value


def state(server):
    """Return everything that deploying may change, by name."""
    found = {}
    for place in ("deployments", "automations", "work_pools", "v2/concurrency_limits"):
        rows = [plain(row) for row in server.post(f"/{place}/filter", {})]
        found[place] = sorted(rows, key=lambda row: (row["name"], row["id"]))
    return found


def test_applying_twice_changes_nothing_and_tells_what_is_on(server, command):
    first = command("deploy", "--pool", POOL, "--replace", "--timezone", "Europe/Berlin")
    assert first.returncode == 0, first.stderr
    before = state(server)
    ours = [d for d in before["deployments"] if d["work_pool_name"] == POOL]
    assert len(ours) == 6
    assert [s["active"] for d in ours for s in d["schedules"]] == [True, True]
    second = command("deploy", "--pool", POOL, "--timezone", "Europe/Berlin")
    assert second.returncode == 0, second.stderr
    assert state(server) == before
    assert "weekly 0 2 * * 6 Europe/Berlin, next 20" in second.stdout
    assert f"pool {POOL}" in second.stdout
    assert second.stdout.count(" unchanged") == 3
    assert f"prefect worker start --pool {POOL} --type process" in second.stdout
    assert "--notify" in second.stdout, "it says how somebody is told of failures"


def test_another_project_is_refused_and_finds_its_place_beside_the_first(server, command):
    assert command("deploy", "--pool", POOL, "--replace").returncode == 0
    before = state(server)
    refused = command("deploy", "project=other", "--pool", POOL)
    assert refused.returncode == 2
    assert "belongs to the project 'small'" in refused.stderr
    assert "--name other" in refused.stderr
    assert "--replace" in refused.stderr
    assert state(server) == before
    twice = command("deploy", "--pool", POOL, "--name", "again")
    assert twice.returncode == 2
    assert "The project 'small' is on this server already" in twice.stderr
    beside = command("deploy", "project=other", "--pool", POOL, "--name", "other")
    assert beside.returncode == 0, beside.stderr
    after = state(server)
    assert [d for d in after["deployments"] if d["name"] != "other"] == before["deployments"]
    names = [a["name"] for a in after["automations"]]
    assert "compass-update-after-drift-other" in names
    assert names.count("compass-crash-zombies") == 1


def test_a_pool_of_another_type_is_refused(command):
    assert command("deploy", "--pool", POOL, "--replace").returncode == 0
    refused = command("deploy", "--pool", POOL, "--pool-type", "docker")
    assert refused.returncode == 2
    assert f"--pool {POOL}-docker" in refused.stderr


def test_what_an_earlier_release_left_is_removed(connected, deploy):
    config = AdaptConfig(languages=("sw",), project="leftovers")
    deploy({"update-adapter": None}, config, pool=POOL, name="leftovers")
    flow = connected.post("/flows/", {"name": "evaluate-adapter"})
    for name in ("leftovers", "mine"):
        body = {"name": name, "flow_id": flow["id"], "tags": ["compass"]}
        connected.post("/deployments/", body)
    automation = {
        "name": "compass-of-old",
        "tags": ["compass", "set-leftovers"],
        "trigger": {"type": "event", "posture": "Reactive", "expect": ["x"], "within": 0},
        "actions": [{"type": "do-nothing"}],
    }
    connected.post("/automations/", automation)
    done = deploy({"update-adapter": None}, config, pool=POOL, name="leftovers")
    assert done["compass-of-old"] == "removed"
    left = connected.post("/deployments/filter", {"flows": {"name": {"any_": [flow["name"]]}}})
    assert [d["name"] for d in left] == ["mine"]


@pytest.fixture
def inbox():
    """A web hook that keeps what it is told."""
    told = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", told
        server.shutdown()


def test_a_failed_run_is_told_to_the_block_that_was_named(connected, deploy, worker, inbox):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    config = AdaptConfig(languages=("sw",), project="told")
    stubs = {"update-adapter": "stub_update.update_adapter"}
    with pytest.raises(ConfigError, match="the server has no such block"):
        deploy(stubs, config, name="told", notify="slack-webhook/nobody")
    address, told = inbox
    block = CustomWebhookNotificationBlock(
        name="inbox", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    with get_client(sync_client=True) as client:
        block.register_type_and_schema(client=client)
    block.save("inbox", overwrite=True)
    done = deploy(stubs, config, name="told", notify="custom-webhook/inbox")
    assert done["compass-notify-failure-told"] == "created"
    run = connected.run_deployment("update-adapter/told", {"language": "no such language"})
    connected.wait_for_end(run)
    message = connected.wait_for(lambda: told, "the message")[0]
    assert "Failed" in message["subject"]
    assert "no such language" in message["body"]
    assert run in message["body"], "the page of the run"
    kept = deploy(stubs, config, name="told")
    assert "compass-notify-failure-told" not in kept, "it stays without being named again"
    removed = deploy(stubs, config, name="told", notify="none")
    assert removed["compass-notify-failure-told"] == "removed"
