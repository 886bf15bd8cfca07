"""The viewer's server: viser behind the gate, with one session for each browser."""

import contextlib
import io
import secrets
import threading
from collections.abc import Sequence

import numpy as np
import viser

from momentum_gs.core.errors import UserError
from momentum_gs.viewer.gate import Gate
from momentum_gs.viewer.models import Models
from momentum_gs.viewer.overview import overview
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.session import Session

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""
POLL_SECONDS = 1.0
"""Between two looks for newer states of a run."""
_FOV = 0.9
"""Vertical opening angle at the start, radians."""


class _Server(viser.ViserServer):
    """viser without its tunnel: any browser could ask for one, which sends the scene through a stranger's server."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Never makes a tunnel."""
        return None


class ViewerServer:
    """Serves runs until it is closed. A context manager."""

    def __init__(self, runs: Sequence[ViewerRun], host: str = "127.0.0.1", port: int = 8080) -> None:
        """
        Args:
            runs: At least one.
            host: Address to bind to; other than a local one, browsers need ``token``.
            port: Port to bind to; 0: any that is free.

        Raises:
            UserError: the port is in use.
        """
        self.token = None if host in LOCAL else secrets.token_urlsafe(24)
        """What browsers must bring; None: nothing."""
        self.models = Models(runs)
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # viser announces a port that is not the one to open.
        with contextlib.redirect_stdout(io.StringIO()):
            # Without a label, the panel says whether the server is connected.
            self._viser = _Server("127.0.0.1", 0, verbose=False)
        try:
            self._gate = Gate(host, port, self._viser.get_port(), self.token)
        except UserError:
            self._viser.stop()
            raise
        self.host, self.port = host, self._gate.port
        self._viser.gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True)
        position, look_at = overview(runs[0])
        self._viser.initial_camera.position = np.asarray(position)
        self._viser.initial_camera.look_at = np.asarray(look_at)
        self._viser.initial_camera.fov = _FOV
        self._viser.on_client_connect(self._connected)
        self._viser.on_client_disconnect(self._disconnected)
        self._poller = threading.Thread(target=self._poll, name="news", daemon=True)
        self._poller.start()

    def __enter__(self) -> "ViewerServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address to open, with the token."""
        host = "localhost" if self.host in LOCAL else self.host
        return f"http://{host}:{self.port}/" + ("" if self.token is None else f"?token={self.token}")

    @property
    def sessions(self) -> list[Session]:
        """Of the browsers that are connected."""
        with self._lock:
            return list(self._sessions.values())

    def close(self) -> None:
        """Drops all browsers and stops to listen."""
        self._closed.set()
        self._poller.join()
        for session in self.sessions:
            session.close()
        self._gate.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._viser.stop()

    def _poll(self) -> None:
        """Looks for newer states of the runs while a browser is connected."""
        known = {run: self.models.labels(run) for run in range(len(self.models.runs))}
        while not self._closed.wait(POLL_SECONDS):
            for run in known if self.sessions else ():
                newer, labels = self.models.ask_for_news(run), self.models.labels(run)
                if newer or labels != known[run]:
                    known[run] = labels
                    for session in self.sessions:
                        session.take_news(run)
            for session in self.sessions:
                session.take_errors()

    def _connected(self, client: viser.ClientHandle) -> None:
        session = Session(client, self.models)
        with self._lock:
            self._sessions[client.client_id] = session
        if client.client_id not in self._viser.get_clients():  # Gone while the session was made.
            self._disconnected(client)

    def _disconnected(self, client: viser.ClientHandle) -> None:
        with self._lock:
            session = self._sessions.pop(client.client_id, None)
        if session is not None:
            session.close()
