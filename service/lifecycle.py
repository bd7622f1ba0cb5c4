"""Whether the process takes traffic: SERVING -> DRAINING -> gone; a lost device ends it too."""

EXIT_OK = 0
EXIT_DEVICE_LOST = 70  # EX_SOFTWARE: a supervisor restarts the process


class Lifecycle:
    """What the signal handler, the runners and the health routes tell each other; flags alone, so any thread may."""

    def __init__(self) -> None:
        self.draining = False
        self.device_lost = False

    def drain(self) -> None:
        """The process is to end: readiness says so from now on."""
        self.draining = True

    def lose_device(self) -> None:
        """The GPU is gone for this process: unready now, and a supervisor starts a new one."""
        self.device_lost = self.draining = True

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return EXIT_DEVICE_LOST if self.device_lost else EXIT_OK
