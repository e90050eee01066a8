"""A disk that is really full: a tiny file system in a mount namespace of its own."""

import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
SIZES = ("150k", "500k", "720k", "20m")
"""The store of the small corpora takes about a megabyte; each size is full at another stage."""


def can_mount(folder):
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_full_disk_is_said_and_more_space_lets_the_next_run_go_on(bench):
    bench.write()
    store = bench.home / "store"
    store.mkdir(parents=True)
    if not can_mount(store):
        pytest.skip("mounting a file system in a namespace of its own is not allowed here")
    script = [f'mount -t tmpfs -o size={SIZES[0]} tmpfs "{store}"']
    for size in SIZES:
        script.append(f'mount -o remount,size={size} "{store}"')
        script.append(f'"{sys.executable}" -m flows.cli adapt "{bench.config}"; echo "exit=$?"')
        script.append(f'echo "manifests=$(ls -d "{store}"/*/*/MANIFEST.json 2>/dev/null | wc -l)"')
        script.append(f'echo "drafts=$(ls "{store}/tmp" 2>/dev/null | wc -l)"')
    script.append(f'cp -r "{store}" "{bench.folder}/kept"')
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "\n".join(script)],
        env=bench.env,
        cwd=bench.folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    said = done.stdout + done.stderr
    values = {
        name: [line.partition("=")[2] for line in said.splitlines() if line.startswith(f"{name}=")]
        for name in ("exit", "manifests", "drafts")
    }
    assert values["exit"] == ["1"] * (len(SIZES) - 1) + ["0"], said
    assert said.count("E64") >= len(SIZES) - 1
    assert "Traceback" not in said
    finished = [int(number) for number in values["manifests"]]
    assert finished == sorted(finished), "nothing that was finished is lost"
    assert set(values["drafts"]) == {"0"}, "a draft was left"
    store.rmdir()
    (bench.folder / "kept").rename(store)
    assert bench.artefacts("adapter-train"), "every file is whole"
