"""Fetches what an http(s) address of a client refers to, from public addresses only.

A name is resolved once, and the connection goes to the address that was checked. Redirects are followed one by one,
with the same checks.
"""

import asyncio
import ipaddress
import socket
import ssl
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import h11

from .errors import ApiError

FETCH_SECONDS = 20.0  # for all addresses of a chat, with redirects
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 2**16  # bytes
EMBEDS_IPV4 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "2002::/16", "2001::/32")))  # gateways, 6to4, Teredo


async def fetch(url: str, max_bytes: int, seconds: float) -> bytes:
    """What is at an address.

    Raises:
        `ApiError`: for an address that is not valid or not public, one that cannot be reached in time, another status
            than 200, or more than `max_bytes`.
    """
    try:
        async with asyncio.timeout(seconds):
            for _ in range(1 + MAX_REDIRECTS):
                content, location = await get(url, max_bytes)
                if location is None:
                    return content
                url = urljoin(url, location)
    except TimeoutError:
        raise refused(url, "did not answer in time", "url_timeout") from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise refused(url, f"cannot be read: {error}", "url_not_read") from None
    raise refused(url, f"was redirected more than {MAX_REDIRECTS} times", "url_not_read")


async def get(url: str, max_bytes: int) -> tuple[bytes, str | None]:
    """The body of one request, or the location to which it was redirected."""
    parts, host, port = read_url(url)
    addresses = await addresses_of(url, host, port)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(
        addresses[0], port, ssl=secure, server_hostname=host if secure else None
    )
    try:
        connection = h11.Connection(h11.CLIENT)
        shown_host = f"[{host}]" if ":" in host else host
        headers = [
            ("Host", shown_host if parts.port is None else f"{shown_host}:{port}"),
            ("User-Agent", "videollm-mod"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
        writer.write(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return await read_answer(url, connection, reader, max_bytes)
    finally:
        writer.close()


async def read_answer(url: str, connection: h11.Connection, reader, max_bytes: int) -> tuple[bytes, str | None]:
    content = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.Response):
            headers = {bytes(name): bytes(value) for name, value in event.headers}
            if event.status_code in REDIRECTS and b"location" in headers:
                return b"", headers[b"location"].decode("latin-1")
            if event.status_code != 200:
                raise refused(url, f"answered with status {event.status_code}", "url_not_read")
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise refused(url, "answered with a compressed body, which was not asked for", "url_not_read")
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > max_bytes:
                raise refused(
                    url, f"holds more than {max_bytes} bytes, which are left of the limit", "url_too_large", 413
                )
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return bytes(content), None


def read_url(url: str) -> tuple[SplitResult, str, int]:
    """The parts of an address, its host in ASCII, and its port."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
    except (ValueError, UnicodeError):
        raise ApiError("invalid_url", "the address is not valid", param="url") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or not host.isprintable():
        raise ApiError("invalid_url", "an address must be http(s)://HOST/PATH, without a user", param="url")
    return parts, host, port


async def addresses_of(url: str, host: str, port: int) -> list[str]:
    """The addresses of a host, of which none may be private."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise refused(url, f"has a host that cannot be resolved: {error}", "url_not_read") from None
    addresses = [str(info[4][0]) for info in found]
    if not addresses or not all(map(is_public, addresses)):
        raise refused(url, "is not a public one; the server fetches no others", "url_not_allowed", 403)
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address may be connected to: a global one, also of what it embeds."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in EMBEDS_IPV4):
            return False
    return ip.is_global and not ip.is_multicast


def refused(url: str, why: str, code: str, status: int = 400) -> ApiError:
    host = urlsplit(url).hostname or ""
    return ApiError(code, f"the address of the host {host[:80]!r} {why}"[:400], status, param="url")


__all__ = ["FETCH_SECONDS", "fetch"]
