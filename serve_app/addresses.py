"""Which addresses only this machine can reach. Used by the validation of the file and by the running endpoint."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether nobody outside this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
