"""Whether the process accepts requests. It serves, then drains, then exits; a lost device makes it exit, too."""

EXIT_OK = 0
EXIT_DEVICE_LOST = 70  # EX_SOFTWARE: a supervisor restarts the process


class Lifecycle:
    """Flags shared by the signal handler, the runners and the health routes. Any thread may read and set them."""

    def __init__(self) -> None:
        self.draining = False
        self.device_lost = False

    def drain(self) -> None:
        """Begins to shut down: from now on, the process reports that it is not ready."""
        self.draining = True

    def lose_device(self) -> None:
        """Begins to shut down because the GPU is lost. Only a new process can use it again; a supervisor starts one."""
        self.device_lost = self.draining = True

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        return EXIT_DEVICE_LOST if self.device_lost else EXIT_OK
