"""Answers in memory: bounded in bytes, the least recently used leaves first, each for its time.

Used by `cache.py` only. Pure; an entry is one row of an answer, or a whole one.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from deployments.types import MONOTONIC, Array, Clock

_ENTRY_BYTES = 512  # what an entry takes besides its outputs: key, dict, objects (tests/test_cache.py measures it)
_OUTPUT_BYTES = 160


class Entry(NamedTuple):
    """What is known of one row: its outputs, read-only, and the tokens it cost when it was computed."""

    outputs: Mapping[str, Array]
    n_tokens: int

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in memory, about."""
        size = _ENTRY_BYTES
        for array in self.outputs.values():
            size += _OUTPUT_BYTES + (_n_bytes(array) if array.dtype.hasobject else array.nbytes)
        return size


class Store:
    """All entries of one ingress replica, by key."""

    def __init__(self, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[Entry, float, int]] = OrderedDict()  # with its end and its size
        self.max_bytes = 0
        self.size_bytes = 0
        self.n_evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def resize(self, max_bytes: int) -> None:
        """Set how much may be kept; 0 keeps nothing."""
        self.max_bytes = max_bytes
        self._make_room(0)

    def get(self, key: bytes) -> Entry | None:
        """Return what is known and still in time."""
        found = self._entries.get(key)
        if found is None:
            return None
        entry, ends, _ = found
        if ends <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry, ttl_s: float) -> None:
        """Keep an entry, in the place of those that were not used for longest."""
        self._drop(key)
        size = entry.size_bytes
        if size <= self.max_bytes:
            if self.size_bytes + size > self.max_bytes:
                self._make_room(size)
            self._entries[key] = (entry, self._clock() + ttl_s, size)
            self.size_bytes += size

    def _make_room(self, n_bytes: int) -> None:
        while self._entries and self.size_bytes + n_bytes > self.max_bytes:
            _, (_, _, size) = self._entries.popitem(last=False)
            self.size_bytes -= size
            self.n_evicted += 1

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.size_bytes -= found[2]


def _n_bytes(array: Array) -> int:
    return array.nbytes + sum(len(element) + 33 for element in array.flat)  # 33: an empty bytes object
