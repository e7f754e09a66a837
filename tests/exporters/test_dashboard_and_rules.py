"""The dashboard and the rules use metrics that exist; Prometheus checks the rest where it is installed."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from memtools import BoundedList, memory_scope
from memtools.exporters._catalogue import FAMILIES, GROWTH
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.readings import Level

ROOT = Path(__file__).parent.parent.parent
DASHBOARD = ROOT / "docs" / "grafana" / "memtools.json"
RULES = ROOT / "docs" / "prometheus" / "memtools.rules.yml"
NAMES = re.compile(r"\bmemtools_[a-z_]+\b")

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed here")
prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed here")


def _exported() -> set[str]:
    with MemtoolsCollector(None) as collector, memory_scope("import", meter="rss"):
        families = {metric.name: metric.type for metric in collector.describe()}
    of_type = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    return {name + suffix for name, kind in families.items() for suffix in of_type[kind]}


def test_catalogue_and_collector_have_the_same_metrics() -> None:
    assert {family.prometheus_name for family in FAMILIES} < _exported()
    assert f"{GROWTH.prometheus_name}_bucket" in _exported()


def test_metric_names_do_not_contain_their_labels() -> None:
    for family in (*FAMILIES, GROWTH):
        words = family.prometheus_name.removesuffix("_total").split("_")
        assert not set(words[1:]) & set(family.labels), family


def test_dashboard_shows_exactly_the_exported_metrics() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]

    shown = {name for query in queries for name in NAMES.findall(query)}

    assert shown <= _exported()
    assert {family.prometheus_name for family in FAMILIES} <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_rules_use_exported_metrics_only() -> None:
    expressions = re.findall(r"expr: (?:\|\n)?(.*?)\n +(?:for|labels):", RULES.read_text(encoding="utf-8"), re.DOTALL)

    named = {name for expression in expressions for name in NAMES.findall(expression)}

    assert len(expressions) == RULES.read_text(encoding="utf-8").count("- alert:")
    assert named
    assert named <= _exported()


@promtool
def test_promtool_accepts_the_rules() -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)

    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


@promtool
def test_promtool_accepts_the_metrics(registry, monitored) -> None:
    monitored(main=Level.WARNING)
    kept = BoundedList(range(3), maxlen=2)
    with memory_scope("import", budget="1 GiB", meter="rss"):
        text = generate_latest(registry)
    del kept

    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@promtool
def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = [
        {"record": f"dashboard:query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")  # JSON is YAML

    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)

    assert checked.returncode == 0, checked.stderr


@pytest.fixture
def scraping(registry: CollectorRegistry, tmp_path: Path) -> Iterator[str]:
    """Return the address of a Prometheus that scrapes the collector twice a second and has the rules."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = f"127.0.0.1:{server.server_port}"
    settings = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "service", "static_configs": [{"targets": [target]}]}],
    }
    file = tmp_path / "prometheus.yml"
    file.write_text(json.dumps(settings), encoding="utf-8")
    options = [f"--config.file={file}", f"--storage.tsdb.path={tmp_path}", f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
            server.shutdown()
            server.server_close()
            thread.join()


def _query(address: str, path: str, **query: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(f"{address}{path}?{urllib.parse.urlencode(query)}", timeout=5) as answer:
            return json.load(answer)["data"]
    except OSError:
        return {}  # it is not up yet


@prometheus
def test_prometheus_scrapes_the_collector_and_loads_the_rules(scraping: str) -> None:
    with memory_scope("import", meter="rss"):
        pass

    deadline = time.monotonic() + 60
    found: list[dict[str, dict[str, str]]] = []
    while not found and time.monotonic() < deadline:
        time.sleep(0.1)
        found = _query(scraping, "/api/v1/query", query="memtools_scope_entered_total").get("result", [])
    rules = _query(scraping, "/api/v1/rules")["groups"][0]["rules"]
    targets = _query(scraping, "/api/v1/targets")["activeTargets"]

    assert found[0]["metric"]["name"] == "import"
    assert [target["health"] for target in targets] == ["up"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
