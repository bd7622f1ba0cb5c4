"""What is wrong with an artifact, and its cure."""


class ArtifactError(ValueError):
    """An artifact that cannot be used; the text says what is wrong, `cure` what to do."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure
