"""The server as a Ray Serve application: replicas that each hold a model, behind Ray's own HTTP proxy.

    serve run focus_rag.serving.ray_serve:build model=Qwen/Qwen2.5-7B-Instruct profile=my-profile replicas=2 gpus=1

Needs the extra `[ray]`. Ray's proxy listens where Ray is told to, on this machine alone by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from pydantic import Field, ValidationError
from ray import serve

from focus_rag.errors import InvalidInputError, first_problem
from focus_rag.serving.settings import ServiceSettings

_MORE: Final = 64


class RaySettings(ServiceSettings):
    """What `build` takes, beside what every service has; limits are those of one replica.

    Attributes:
        model: Hub id or folder; None for the model that comes with the package. Every machine that runs a replica has
            to find it.
        profile: Its profile, folder or Hub id.
        replicas: How many models are held at the same time.
        gpus: GPUs of a replica; 0 for the CPU.
        cpus: Processors of a replica.
    """

    model: str | None = None
    profile: str | None = None
    replicas: int = Field(default=1, ge=1)
    gpus: float = Field(default=0.0, ge=0.0)
    cpus: float = Field(default=1.0, ge=0.0)


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """The application, for `serve run`, `serve deploy` and `ray.serve.run`.

    Args:
        arguments: Fields of `RaySettings`.

    Raises:
        InvalidInputError: An argument is unknown or cannot be used.
    """
    try:
        settings = RaySettings.model_validate(dict(arguments))
    except ValidationError as error:
        raise InvalidInputError(f"The server cannot be set up: {first_problem(error.errors())}.") from error

    def app() -> FastAPI:
        from focus_rag.generator import FocusGenerator
        from focus_rag.serving.app import create_app

        generator = FocusGenerator.from_pretrained(
            settings.model, settings.profile, device_map="cuda" if settings.gpus else None
        )
        return create_app(generator, settings)

    deployment = serve.deployment(
        name="focus_rag",
        num_replicas=settings.replicas,
        # More than a replica takes itself: what waits there goes together into its next batch, what it refuses is told
        # so, and how it is can be asked meanwhile. What waits before it has no clock.
        max_ongoing_requests=settings.most_requests + _MORE,
        max_queued_requests=settings.most_requests,
        ray_actor_options={"num_gpus": settings.gpus, "num_cpus": settings.cpus},
    )
    return deployment(serve.ingress(app)()).bind()
