"""The door of the viewer: takes every connection, and passes on those that may come in.

viser checks nothing, so it listens on a port of the local machine that nobody is told, and this proxy on the one that
is told. A request must come from the viewer's own page (its Origin, if it has one, is its Host), as otherwise any web
page that is open in the same browser could connect. With a token, it must also bring the token: in the address, once;
then in the cookie that the answer sets. A connection is checked at its first request, before a byte is passed on.
"""

import asyncio
import hmac
import http.cookies
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from momentum_gs.core.errors import UserError

COOKIE = "momentum_gs_view"
"""Start of the cookie's name; the port follows, as a browser keeps one set of cookies for all ports of a machine."""
_MOST_HEAD = 64 << 10
"""Bytes of a request's head; browsers send one or two thousand."""
_HEAD_SECONDS = 20.0
"""A connection that has not sent its head by then is closed."""
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Request:
    """The head of an HTTP request."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By lower-case name."""

    @property
    def query_token(self) -> str | None:
        """The token in the address."""
        return next(iter(parse_qs(urlsplit(self.target).query).get("token", [])), None)

    def cookie(self, name: str) -> str | None:
        """The value of a cookie."""
        try:
            cookies = http.cookies.SimpleCookie(self.headers.get("cookie", ""))
        except http.cookies.CookieError:
            return None
        return cookies[name].value if name in cookies else None


def parse_request(head: bytes) -> Request | None:
    """The request of a head; None if it is none."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    pairs = (line.partition(":") for line in lines[1:] if ":" in line)
    return Request(words[0], words[1], {name.strip().lower(): value.strip() for name, _, value in pairs})


def verdict(request: Request | None, token: str | None, cookie: str = COOKIE) -> tuple[int, str | None]:
    """(HTTP status, cookie to set): 200: pass on; 303: come again, with the cookie; 4xx: refused.

    Args:
        request: The request; None: it was none.
        token: What it must bring; None: nothing.
        cookie: Name of the cookie.
    """
    if request is None:
        return 400, None
    if request.method != "GET":  # viser answers nothing else.
        return 405, None
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return 403, None
    if token is None:
        return 200, None
    if _same(request.cookie(cookie), token):
        return 200, None
    if _same(request.query_token, token):
        return 303, f"{cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
    return 403, None


def _same(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


_TEXTS = {303: "See Other", 400: "Bad Request", 403: "Forbidden", 405: "Method Not Allowed"}


def answer(status: int, cookie: str | None) -> bytes:
    """The whole answer to a request that is not passed on."""
    body = b"" if status == 303 else b"momentum-gs view: open the address that the command printed, with its token.\n"
    lines = [f"HTTP/1.1 {status} {_TEXTS[status]}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"Set-Cookie: {cookie}", "Location: /"] if cookie else ["Content-Type: text/plain"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Gate:
    """The proxy, in a thread of its own."""

    def __init__(self, host: str, port: int, inner_port: int, token: str | None) -> None:
        """Starts to listen.

        Args:
            host: Address to bind to.
            port: Port to bind to; 0: any that is free.
            inner_port: Where viser listens on this machine.
            token: What a client must bring; None: nothing.

        Raises:
            UserError: the port is in use, or the address is not one of this machine.
        """
        self._inner, self._token = inner_port, token
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()
        try:
            self._server = asyncio.run_coroutine_threadsafe(self._listen(host, port), self._loop).result()
        except OSError as error:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise UserError(
                f"view: cannot listen on {host}:{port} ({error.strerror or error}), expected a free port of this "
                "machine; choose another with --port, or end the program that uses it"
            ) from error

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, host, port, limit=_MOST_HEAD)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def close(self) -> None:
        """Stops to listen and drops all connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._answer(reader, writer)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_SECONDS)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            return
        status, cookie = verdict(parse_request(head), self._token, f"{COOKIE}_{self.port}")
        if status != 200:
            writer.write(answer(status, cookie))
            await _finish(writer)
            return
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner)
        except OSError:
            return
        inner_writer.write(head)
        try:
            await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))
        finally:
            inner_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until one side ends, then closes the other."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    await _finish(writer)


async def _finish(writer: asyncio.StreamWriter) -> None:
    try:
        writer.close()
        await writer.wait_closed()
    except OSError:
        pass
