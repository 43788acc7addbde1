"""What goes wrong around a local cluster, in one line: raised all over `serve_app.local`, printed by `commands`."""


class LocalFailure(Exception):
    """A cluster can't be started, deployed to or stopped; the message is one line: what, where, what to do."""
