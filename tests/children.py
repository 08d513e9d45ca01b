"""The children of a gateway for tests without processes."""


class KnownChildren:
    """Whoever has a credential is a child, or ``known`` ones; ``running``: their processes run."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.known: set[str] | None = None

    def is_child(self, credential: str) -> bool:
        return bool(credential) if self.known is None else credential in self.known

    def is_running(self, credential: str) -> bool:
        return credential in self.running
