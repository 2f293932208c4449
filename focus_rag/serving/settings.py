"""Who may use a server and how much a request may ask for, and where it listens."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

_KEY = re.compile("[!-~]+")  # what a header can hold as one word


class ServiceSettings(BaseModel):
    """Who may use a service, and how much one request may ask for.

    Attributes:
        api_key: What a client has to send as `Authorization: Bearer KEY`; None lets everybody on this machine in.
        name: What clients call the model; None for the generator's own name.
        most_bytes: Largest body of a request.
        most_passages: Passages of a request.
        most_new_tokens: Longest answer that a request may ask for, in tokens.
        most_requests: Requests that are answered or wait at the same time; more are sent away with status 503.
        seconds: Time that a request may wait and be answered in; then it ends with status 504, or with an error in its
            stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: SecretStr | None = None
    name: str | None = Field(default=None, min_length=1)
    most_bytes: int = Field(default=4 * 2**20, ge=1)
    most_passages: int = Field(default=200, ge=0)
    most_new_tokens: int = Field(default=1024, ge=1)
    most_requests: int = Field(default=64, ge=1)
    seconds: float = Field(default=120.0, gt=0.0, allow_inf_nan=False)

    @field_validator("api_key")
    @classmethod
    def _one_word(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not _KEY.fullmatch(key.get_secret_value()):
            raise ValueError("the API key has to be of visible ASCII characters, and at least one")
        return key

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of this machine under which requests without a key are answered."""
        return ("localhost", "127.0.0.1", "[::1]", "::1")


class ServerSettings(ServiceSettings):
    """Where a server of its own listens, beside what every service has.

    Attributes:
        host: Address to listen on. Anything but this machine's own needs an `api_key`.
        port: Port to listen on; 0 takes a free one.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)

    @model_validator(mode="after")
    def _nobody_else_without_a_key(self) -> Self:
        if not self.is_local and self.api_key is None:
            raise ValueError(
                f"listening on {self.host} lets other machines in: give an API key, or listen on 127.0.0.1"
            )
        return self

    @property
    def hosts(self) -> tuple[str, ...]:
        return (*super().hosts, self.host)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"
