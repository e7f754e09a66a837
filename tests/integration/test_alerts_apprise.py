"""The channel for apprise: results, retries, hidden secrets, the missing library."""

import http.server
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from memtools.alerts import AlertRule, Alerts, AppriseChannel
from memtools.errors import ConfigError, MissingExtraError
from memtools.events import LevelChanged, emit
from memtools.readings import Level, Reading

pytest.importorskip("apprise", reason="apprise is an extra of its own")

TOKEN = "T0K3N-1357"
PASSWORD = "open-sesame-8642"

pytestmark = [
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),  # apprise imports it
    pytest.mark.leaves("thread", reason="apprise keeps the threads in which it sends"),
]


class Listener(http.server.ThreadingHTTPServer):
    """A server that records what apprise posts as JSON, and answers with a given status."""

    daemon_threads = False
    bodies: list[dict[str, object]]
    status = 200


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A real HTTP server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert isinstance(self.server, Listener)
            self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    listener = Listener(("127.0.0.1", 0), Handler)
    listener.bodies = []
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield listener
    listener.shutdown()
    thread.join()
    listener.server_close()


def level(after: Level) -> LevelChanged:
    return LevelChanged(Level.NORMAL, after, Reading(900, 1000, time.monotonic()), 800)


def test_url_in_a_rule_is_sent_by_apprise_and_hidden(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"json://user:{PASSWORD}@127.0.0.1:{listener.server_port}/{TOKEN}"
    rule = AlertRule("warning", notify=url)

    with Alerts([rule], drain=10) as alerts:
        emit(level(Level.WARNING))
        emit(level(Level.NORMAL))

    assert [body["type"] for body in listener.bodies] == ["warning", "success"]
    everything = "\n".join([caplog.text, repr(rule), repr(alerts), repr(alerts.statistics())])
    assert TOKEN not in everything
    assert PASSWORD not in everything
    assert "json://<hidden>" in everything


def test_message_that_apprise_did_not_deliver_is_tried_again(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    listener.status = 500
    url = f"json://127.0.0.1:{listener.server_port}/{TOKEN}"

    with Alerts([AlertRule("warning", notify=url)], retry_first=0.01, drain=10) as alerts:
        emit(level(Level.WARNING))
        deadline = time.monotonic() + 10
        while not alerts.statistics().channels[0].failures and time.monotonic() < deadline:
            time.sleep(0.005)
        listener.status = 200

    (figures,) = alerts.statistics().channels
    assert figures.failures >= 1
    assert (figures.delivered, figures.lost) == (1, 0)
    assert TOKEN not in caplog.text


def test_url_that_apprise_cannot_read_fails_the_start_hidden(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    alerts = Alerts([AlertRule("warning", notify=f"nosuchservice://{TOKEN}/{PASSWORD}")])

    with pytest.raises(ConfigError, match="url=<hidden>") as caught:
        alerts.start()

    assert not alerts.is_running
    assert TOKEN not in f"{caught.getrepr(style='long')}{caplog.text}"


def test_missing_apprise_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'memtools\[alerts\]'"):
        AppriseChannel("json://localhost").open()


def test_apprise_is_imported_at_the_start_and_not_before() -> None:
    program = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from memtools.alerts import AlertRule, Alerts\n"
        "alerts = Alerts([AlertRule('warning', notify='json://localhost/token')])\n"
        "before = 'apprise' in sys.modules\n"
        "with alerts: print(before, 'apprise' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == ["False", "True"]
