"""The app behind uvicorn: in front, as a command, or in a thread of the daemon."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from kinship_daemon.errors import UsageError
from kinship_daemon.home import Home
from kinship_daemon.web.app import application
from kinship_daemon.web.connections import Bounded
from kinship_daemon.web.webhook import Webhook

__all__ = ["Served", "Server", "hooked", "serve", "served"]

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Server:
    """
    An app on its way to visitors.

    Attributes:
        port: Where it listens; of its own choice if 0 was asked for.
    """

    def __init__(
        self, app: ASGIApp, found: socket.socket, stop: threading.Event | None = None
    ) -> None:
        self._stop = stop or threading.Event()
        self._socket = found
        self.port: int = found.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                app,
                http=Bounded,
                log_config=None,
                log_level="error",  # bugs; not what strangers send
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                timeout_keep_alive=5,
                timeout_graceful_shutdown=2,
            ),
            self._stop,
        )

    def run(self) -> None:
        """Until `stop`, or in the main thread until a signal."""
        with closing(self._socket):
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        self._stop.set()
        self._server.should_exit = True


class Served(Server):
    """
    The dashboard.

    Attributes:
        url: Where it is found.
        is_open: Others than this machine may look, and nobody asks them for a password.
    """

    def __init__(self, home: Home, host: str, port: int, token: str | None) -> None:
        """
        Raises:
            UsageError: The address cannot be listened at.
        """
        found = _listening(host, port, "dashboard", "choose another port or address")
        stop, local = threading.Event(), host in _LOOPBACK
        self.is_open = not local and token is None
        super().__init__(application(home, token=token, local=local, stop=stop), found, stop)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/"


class _Server(uvicorn.Server):
    """Tells live streams, which would go on for ever, that it ends."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop_streams = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop_streams.set()
        super().handle_exit(sig, frame)


def serve(
    home: Home, host: str, port: int, token: str | None, say: Callable[[Served], None]
) -> None:
    """In front, until SIGINT or SIGTERM; `say` is called once visitors can come."""
    server = Served(home, host, port, token)
    say(server)
    with suppress(KeyboardInterrupt):  # uvicorn raises it once more when it is through with it
        server.run()


@contextmanager
def served(home: Home, host: str, port: int, token: str | None) -> Iterator[Served]:
    """In a thread, for as long as the block lasts."""
    server = Served(home, host, port, token)
    with _in_a_thread(server, "web"):
        yield server


@contextmanager
def hooked(webhook: Webhook, host: str, port: int) -> Iterator[Server]:
    """
    The webhook alone, at an address of its own: what the world may reach holds no dashboard.

    Raises:
        UsageError: The address cannot be listened at.
    """
    advice = "set another watch.webhook_port or watch.webhook_host"
    server = Server(webhook.app, _listening(host, port, "webhook", advice))
    with _in_a_thread(server, "webhook"):
        try:
            yield server
        finally:
            webhook.close()


@contextmanager
def _in_a_thread(server: Server, name: str) -> Iterator[None]:
    thread = threading.Thread(target=server.run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(5)


def _listening(host: str, port: int, what: str, advice: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(128)
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the {what} cannot listen at {host}:{port}: {reason}; {advice}") from None
    return found
