"""Bodies packed with gzip or deflate, both ways, within bounds: what Triton's clients ask for by name.

Called by `middleware.Packing`. Unpacking stops at the limit of a body, so a small one cannot become a huge one. Only
big answers are packed: small ones cost more time than the wire saves.
"""

import zlib
from itertools import count

from deployments.errors import BodyTooLarge, InvalidInput, UnsupportedEncoding

MIN_BYTES = 16 * 1024  # answers from this size on are packed, for clients that accept it
ENCODINGS = ("gzip", "deflate")
_WINDOW = {"gzip": 31, "deflate": 15}  # zlib's wbits: 16 more is a gzip header
_MAX_MEMBERS = 64  # each copies what follows it: a body of empty ones would take hours
_LEVEL = 1  # numbers hardly shrink further at three times the cost


def encoding_of(content_encoding: str) -> str | None:
    """Return how a body is packed, None if it is not. Raises UnsupportedEncoding."""
    encoding = content_encoding.strip().lower().removeprefix("x-")
    if encoding in ("", "identity"):
        return None
    if encoding not in ENCODINGS:
        raise UnsupportedEncoding(
            f"Unsupported compression type: content-encoding {encoding[:40]!r}; send the body as it is, or as "
            f"{' or '.join(ENCODINGS)}",
            field="content-encoding",
        )
    return encoding


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the body as it was.

    Raises:
        BodyTooLarge: it is longer than `max_bytes`.
        InvalidInput: it is damaged, cut off, or followed by something else.
    """
    out = bytearray()
    rest = body
    for n_members in count():  # gzip may have several members, one after the other
        if not rest:
            break
        if n_members == _MAX_MEMBERS:
            raise InvalidInput(f"body: has more than {_MAX_MEMBERS} {encoding} members", field="body")
        unpacker = zlib.decompressobj(_WINDOW[encoding])
        try:
            out += unpacker.decompress(rest, max_bytes + 1 - len(out))
        except zlib.error:
            raise InvalidInput(f"body: is not {encoding}, as content-encoding says", field="body") from None
        if len(out) > max_bytes:
            raise BodyTooLarge(
                f"body: unpacked it exceeds the maximum of {max_bytes} bytes; send fewer items a request",
                field="body",
                max_bytes=max_bytes,
            )
        if not unpacker.eof:
            raise InvalidInput(f"body: ends before its {encoding} data does", field="body")
        rest = unpacker.unused_data if encoding == "gzip" else b""
        if encoding == "deflate" and unpacker.unused_data:
            raise InvalidInput("body: something follows the deflate data", field="body")
    return bytes(out)


def accepted(accept_encoding: str) -> str | None:
    """Return the encoding a client likes best of those we write, None for none; by `Accept-Encoding` with q-values."""
    wishes: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        name, _, weight = part.partition(";")
        wishes[name.strip()] = _weight(weight)
    best = max(ENCODINGS, key=lambda name: wishes.get(name, wishes.get("*", 0.0)))
    liking = wishes.get(best, wishes.get("*", 0.0))
    return best if liking > 0 and liking >= wishes.get("identity", 0.0) else None


def pack(body: bytes, encoding: str) -> bytes:
    """Return a body packed."""
    packer = zlib.compressobj(_LEVEL, wbits=_WINDOW[encoding])
    return packer.compress(body) + packer.flush()


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
