"""The manifest of docs/kubernetes.md, its schema, command and probes; and an exhausted service under a supervisor."""

import asyncio
import copy
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from memtools import Config
from memtools.units import parse_size

pytest.importorskip("uvicorn", reason="uvicorn is not installed here")
yaml = pytest.importorskip("yaml")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="the supervisor reads /proc"),
]

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "docs" / "kubernetes" / "deployment.yaml"
MIB = 2**20


@pytest.fixture(scope="module")
def manifest() -> Any:
    return yaml.safe_load(MANIFEST.read_text("utf-8"))


def _container(manifest: Any) -> Any:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return container


def _environment(container: Any, report_folder: Path) -> dict[str, str]:
    """Return what kubelet sets: values as they are, and those of the downward API."""
    fields = {"metadata.name": "shop-7d4b9c-x2x5l", "metadata.namespace": "default"}
    found = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "resourceFieldRef" in source:
            kind, _, resource = source["resourceFieldRef"]["resource"].partition(".")
            found[variable["name"]] = str(parse_size(container["resources"][kind][resource]))
        elif "fieldRef" in source:
            found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        else:
            found[variable["name"]] = variable["value"].replace("/var/lib/memtools", str(report_folder))
    return found


class TestManifest:
    @pytest.mark.parametrize("version", ["1.30", "1.33", "1.36"])
    def test_manifest_is_valid_for_kubernetes(self, manifest: Any, version: str) -> None:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")

        kubernetes_validate.validate(manifest, version, strict=True)
        broken = copy.deepcopy(manifest)
        _container(broken)["readinessProbe"]["httpGet"]["prot"] = "http"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, version, strict=True)

    def test_quantities_and_settings_are_accepted(self, manifest: Any, tmp_path: Path) -> None:
        container = _container(manifest)
        (volume,) = manifest["spec"]["template"]["spec"]["volumes"]
        resources = container["resources"]

        sizes = [resources[kind]["memory"] for kind in ("requests", "limits")] + [volume["emptyDir"]["sizeLimit"]]
        settings = Config.from_env(environ=_environment(container, tmp_path))

        assert [parse_size(size) for size in sizes] == [512 * MIB, 512 * MIB, 64 * MIB]
        assert settings.limit == str(512 * MIB)
        assert settings.monitor()["exhausted_after"] == 300

    def test_times_of_the_manifest_fit_each_other(self, manifest: Any) -> None:
        pod, container = manifest["spec"]["template"]["spec"], _container(manifest)
        grace_s = 30  # the default of exit_when_exhausted(), in which uvicorn ends its requests, too

        assert pod["terminationGracePeriodSeconds"] >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + grace_s
        live = container["livenessProbe"]
        assert live["periodSeconds"] * live["failureThreshold"] > grace_s  # kubelet does not cut the end short
        assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}

    def test_service_answers_the_probes_of_the_manifest(self, manifest: Any, tmp_path: Path) -> None:
        container = _container(manifest)
        own = {"0.0.0.0": "127.0.0.1", str(container["ports"][0]["containerPort"]): "0", "python": sys.executable}
        command = [own.get(word, word) for word in container["command"] + container["args"]]
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}

        process = subprocess.Popen(
            command, cwd=ROOT, env=environment | _environment(container, tmp_path), stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            codes = {}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert _probe(address, container[kind])
                codes[kind] = httpx.get(address + container[kind]["httpGet"]["path"], timeout=5)
        finally:
            process.terminate()
            process.communicate(timeout=30)

        assert {code.status_code for code in codes.values()} == {200}
        assert codes["readinessProbe"].json()["limit_bytes"] == 512 * MIB
        assert process.returncode == -signal.SIGTERM


def _probe(address: str, probe: Any) -> bool:
    """Return whether it succeeds within its time, as kubelet asks: a status from 200 to 399."""
    for _ in range(30):
        try:
            if httpx.get(address + probe["httpGet"]["path"], timeout=probe.get("timeoutSeconds", 1)).is_success:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


@dataclass
class Supervisor:
    """Starts a service again whenever it ends, and kills it above the limit, as the kernel does in a container.

    It holds the listening socket, so that connections wait while no process accepts them.
    """

    listener: socket.socket
    environment: dict[str, str]
    limit_bytes: int
    log: Path
    codes: list[int] = field(default_factory=list)
    killed: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        command = [sys.executable, str(ROOT / "docs" / "examples" / "service.py"), "--serve"]
        command += ["--fd", str(self.listener.fileno())]
        while not self._stopping.is_set():
            with self.log.open("a") as log:
                process = subprocess.Popen(
                    command,
                    env=os.environ | self.environment,
                    pass_fds=[self.listener.fileno()],
                    stdout=log,
                    stderr=log,
                )
            while process.poll() is None:
                if self._stopping.wait(0.01):
                    process.terminate()
                elif _resident(process.pid) > self.limit_bytes:
                    process.kill()
                    self.killed += 1
                    process.wait()
            if not self._stopping.is_set():
                self.codes.append(process.returncode)

    def stop(self) -> None:
        self._stopping.set()


def _usual_bytes() -> int:
    """Return what the service needs before its first request; this process has loaded much more."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import service; print(service.resident_bytes())"
    found = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "docs" / "examples")], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@dataclass
class Traffic:
    """What clients and probes have seen."""

    answers: Counter[str] = field(default_factory=Counter)
    probes: list[tuple[float, int, int, str]] = field(default_factory=list)
    admitted_at: list[float] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))


async def _client(address: str, seen: Traffic, supervisor: Supervisor) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=20) as client:
        while not supervisor.codes:
            try:
                answer = await client.get(f"/search?q={next(seen.names)}")
            except httpx.TransportError:
                seen.answers["failed"] += 1
                continue
            seen.answers[str(answer.status_code)] += 1
            if answer.status_code == 200:
                seen.admitted_at.append(time.monotonic())
            else:
                await asyncio.sleep(0.05)


async def _prober(address: str, seen: Traffic, supervisor: Supervisor) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=20) as client:
        while not supervisor.codes:
            try:
                ready, live = await client.get("/health/ready"), await client.get("/health/live")
                seen.probes.append((time.monotonic(), ready.status_code, live.status_code, ready.json()["status"]))
            except httpx.TransportError:
                pass  # the process has ended between the two
            await asyncio.sleep(0.02)


def _run_until_restarted(settings: dict[str, str], limit_bytes: int, log: Path) -> tuple[Traffic, Supervisor, int]:
    """Load the service until it has ended once and its successor is ready; return the last status of readiness, too."""
    seen = Traffic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        supervisor = Supervisor(listener, settings, limit_bytes, log)
        thread = threading.Thread(target=supervisor.run)
        thread.start()

        async def load() -> None:
            clients = [_client(address, seen, supervisor) for _ in range(6)]
            async with asyncio.timeout(60):
                await asyncio.gather(*clients, _prober(address, seen, supervisor))

        try:
            asyncio.run(load())
            ready = httpx.get(f"{address}/health/ready", timeout=20).status_code
        finally:
            supervisor.stop()
            thread.join(60)
    return seen, supervisor, ready


MIN_FLOW, EXHAUSTED_AFTER_S = 5, 3.0  # "five minutes at CRITICAL" are three seconds here


def test_exhausted_service_fails_no_more_requests_than_a_kill(tmp_path: Path) -> None:
    usual = _usual_bytes()
    limit = usual + 60 * MIB
    report = tmp_path / "report.txt"
    settings = {
        "MEMTOOLS_WARNING": str(usual + 10 * MIB),
        "MEMTOOLS_CRITICAL": str(usual + 20 * MIB),
        "MEMTOOLS_EXHAUSTED_AFTER": str(EXHAUSTED_AFTER_S),
        "MEMTOOLS_MIN_FLOW": str(MIN_FLOW),
        "SHOP_REPORT": str(report),
    }
    unwatched = {"MEMTOOLS_WARNING": "99%", "MEMTOOLS_CRITICAL": "100%"}

    seen, supervisor, ready = _run_until_restarted(settings, limit, tmp_path / "ours")
    killed, killer, _ = _run_until_restarted(unwatched, limit, tmp_path / "killed")

    log = (tmp_path / "ours").read_text()
    assert (supervisor.codes, supervisor.killed, ready) == ([75], 0, 200), log
    assert (killer.codes, killer.killed) == ([-signal.SIGKILL], 1)

    critical = [(at, live) for at, status, live, name in seen.probes if status == 503 and name == "critical"]
    first_at, last_at = critical[0][0], critical[-1][0]
    assert critical[0][1] == 200  # readiness first
    assert last_at - first_at >= EXHAUSTED_AFTER_S - 1
    admitted = sum(first_at < at <= last_at for at in seen.admitted_at)
    assert admitted >= int((last_at - first_at) * MIN_FLOW) - 3

    assert re.search(r"memory is CRITICAL: .*; nothing has helped for \d+ s; the process ends", log)
    assert "shop: CRITICAL for" in report.read_text("utf-8")
    assert re.search(r"^ +- /search holds [\d.]+ MiB", report.read_text("utf-8"), re.MULTILINE)
    window_s = last_at - first_at
    print(f"\nended: {dict(seen.answers)}, {admitted} admitted in {window_s:.1f} s; killed: {dict(killed.answers)}")
    assert seen.answers["failed"] <= killed.answers["failed"]
    assert seen.answers["500"] == 0
