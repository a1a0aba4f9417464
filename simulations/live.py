"""Page of a run under way: a server on loopback that shows what has happened so far, and ends with the run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup

from fl_peel.errors import ReportError
from fl_peel.events import Event
from simulations.report.render import policy, render, templates

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""Names by which the page may be asked for: a page from elsewhere, whose name leads here, gets nothing."""
LOOKING_S = 3.0
"""Seconds after a request during which its sender counts as still looking, and gets the end of the run."""
FAREWELL_S = 2.0
"""Seconds that the end waits at most to be delivered."""


class EventLog:
    """The events of a run so far, for many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []
        self._asked: float | None = None
        self._ended = self._heard = False

    def __call__(self, event: Event) -> None:
        content = {field.name: getattr(event, field.name) for field in fields(event)}
        with self._changed:
            self._events.append(content | {"seconds": self._clock() - self._begin})

    def since(self, number: int) -> dict[str, Any]:
        """Events from that number on, the number of the next one, and whether the run has ended."""
        with self._changed:
            self._asked = self._clock()
            self._heard |= self._ended
            self._changed.notify_all()
            seconds = self._clock() - self._begin
            return {
                "events": self._events[number:], "next": len(self._events), "ended": self._ended, "seconds": seconds
            }  # fmt: skip

    def end(self) -> None:
        """End the log with the run; viewers may still get the end."""
        with self._changed:
            self._ended = True
            if self._asked is not None and self._clock() - self._asked < LOOKING_S:
                self._changed.wait_for(lambda: self._heard, FAREWELL_S)


@contextmanager
def live(port: int, title: str) -> Iterator[tuple[str, EventLog]]:
    """Serve a run's page on loopback, and give its address and what to tell of events; port 0: any that is free.

    Raises:
        ReportError: the port is taken, or is none.
    """
    events = EventLog()
    script = templates()["live.js"]
    page = render(
        "live.html",
        title=f"{title}: running",
        lead="Waiting for the run to start.",
        facts=[],
        script=Markup(script),
        policy=policy(script, "connect-src 'self'"),
    ).encode()
    try:
        server = _Server((HOST, port), _Handler)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ReportError(
            f"--live-port {port}: the port cannot be opened ({why}); give another, or 0 for any"
        ) from error
    server.page, server.events = page, events
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/", events
    finally:
        events.end()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: bytes
    events: EventLog


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """The page, or events."""
        address = urlsplit(self.path)
        if self.headers.get("Host", "").partition(":")[0] not in NAMES:
            self._say(HTTPStatus.FORBIDDEN, "text/plain", b"this page is of this machine alone\n")
        elif address.path == "/":
            self._say(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif address.path == "/events":
            since = parse_qs(address.query).get("since", ["0"])[0]
            events = self.server.events.since(int(since) if since.isdecimal() else 0)
            self._say(HTTPStatus.OK, "application/json", json.dumps(events, default=dict).encode())
        else:
            self._say(HTTPStatus.NOT_FOUND, "text/plain", b"there is / alone\n")

    def _say(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is the run's."""
