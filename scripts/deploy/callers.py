"""Who is connected to the gate, and who has to go where there are too many.

A caller is a stranger until one of its calls turns out to be signed by a registered client; where it is one, that takes
the fraction of a second of a handshake and some headers. So few places are enough for strangers, and where they are
full, the address that has most of them loses one: who floods them drives out itself, and nobody who is known.
"""

import ipaddress
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

MAX_STRANGERS = 128
"""A place costs 0.3 MB: TLS of Python holds a buffer of 256 KiB for each connection."""
MAX_KNOWN = 512
MAX_OF_A_KEY = 16
"""A client has three or four: messages, heartbeats, two objects at once."""


@dataclass(eq=False)
class Caller:
    """One connection."""

    address: str
    cut_off: Callable[[], object]
    key: bytes | None = None
    """Of the registered client that it is; None for a stranger."""


class Callers:
    """All connections."""

    def __init__(self) -> None:
        self._strangers: defaultdict[str, list[Caller]] = defaultdict(list)
        """By address, none of them empty, each in the order of coming."""
        self._known: defaultdict[bytes, set[Caller]] = defaultdict(set)
        """By key, none of them empty."""

    def come(self, caller: Caller) -> None:
        """Another stranger; where that is one too many, one of those before it is cut off."""
        if sum(map(len, self._strangers.values())) >= MAX_STRANGERS:
            self.cut_one_off()
        self._strangers[caller.address].append(caller)

    def cut_one_off(self) -> None:
        """A stranger of the address that has most: any of the elder half, so that a newcomer has time for its call."""
        if self._strangers:
            most = max(self._strangers.values(), key=len)
            unlucky = random.choice(most[: (len(most) + 1) // 2])
            self.leave(unlucky)
            unlucky.cut_off()

    def make_known(self, caller: Caller, key: bytes) -> bool:
        """Whether there is a place for it as this client."""
        if caller.key == key:
            return True
        if len(self._known.get(key, ())) >= MAX_OF_A_KEY or sum(map(len, self._known.values())) >= MAX_KNOWN:
            return False
        self.leave(caller)
        caller.key = key
        self._known[key].add(caller)
        return True

    def leave(self, caller: Caller) -> None:
        """Again does nothing."""
        if caller.key is not None:
            self._known[caller.key].discard(caller)
            if not self._known[caller.key]:
                del self._known[caller.key]
        elif caller in self._strangers.get(caller.address, ()):
            self._strangers[caller.address].remove(caller)
            if not self._strangers[caller.address]:
                del self._strangers[caller.address]


def address_of(host: str) -> str:
    """Of IPv6 the first 64 bits: a household, or one machine, has all the others."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
