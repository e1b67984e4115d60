"""What `baton doctor` can be told."""

from typing import Self

from pydantic import Field, model_validator

from protocol.process.settings import CommandSettings


class DoctorSettings(CommandSettings):
    """Without --serve and --peer: this machine alone, in a few seconds."""

    as_json: bool = Field(default=False, alias="json")
    """Print everything as one JSON object."""
    serve: bool = False
    """Wait for the doctor of another machine, and measure the way between the two. Prints the
    token that the other must give; without it nobody gets more than a refusal."""
    peer: str = Field(default="", pattern=r"^(|.+:\d{1,5})$")
    """HOST:PORT of a doctor that serves. Empty: none."""
    token: str = Field(default="", repr=False)
    """With --peer: what the serving doctor printed. Better set as BATON_TOKEN than as a flag,
    which others can read."""
    host: str = "0.0.0.0"
    """With --serve: interface to wait on. All, because the other machine must reach it."""
    port: int = Field(default=0, ge=0, le=65535)
    """With --serve: port to wait on. 0: any free one, printed."""
    wait_s: float = Field(default=300.0, gt=0, le=3600)
    """With --serve: seconds to wait for the other: time to walk to it."""

    @model_validator(mode="after")
    def _one_role(self) -> Self:
        if self.serve and self.peer:
            raise ValueError("give --serve on one machine and --peer on the other")
        if bool(self.peer) != bool(self.token):
            raise ValueError("--peer and the token that the serving doctor printed go together")
        return self
