"""`focus-rag serve`: the model over HTTP, in the shape of the OpenAI API."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from focus_rag.cli.loading import (
    AlphaOption,
    DeviceOption,
    KeepBestOption,
    ModelOption,
    ProfileOption,
    SplitOption,
    TemplateOption,
    load_generator,
    parse_alpha,
    parse_split,
    require_profile,
    split_at,
)


def command(
    model: ModelOption = None,
    profile: ProfileOption = None,
    alpha: AlphaOption = "auto",
    split: SplitOption = "auto",
    keep_best: KeepBestOption = None,
    template: TemplateOption = None,
    device: DeviceOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", help="Address to listen on; default: 127.0.0.1. One that other machines reach needs an API key."
        ),
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; default: 8000.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="FOCUS_RAG_API_KEY", help="What clients have to send as their bearer token."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call the model; default: its own name.")
    ] = None,
) -> None:
    """Serve the model over HTTP as the OpenAI API does, with passages beside the messages.

    Example: focus-rag serve --model Qwen/Qwen2.5-7B-Instruct --profile my-profile
    """
    from pydantic import ValidationError

    from focus_rag.errors import InvalidInputError, MissingDependencyError, first_problem

    factor, leaning = parse_alpha(alpha), parse_split(split)
    require_profile(model, profile, factor, leaning)
    try:
        import uvicorn

        from focus_rag.serving.app import create_app
        from focus_rag.serving.settings import ServerSettings
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("focus_rag"):
            raise
        raise MissingDependencyError(f"Serving needs {error.name}: pip install 'focus-rag[serve]'.") from error
    given = {"host": host, "port": port, "api_key": api_key, "name": name}
    try:
        settings = ServerSettings.model_validate({field: value for field, value in given.items() if value is not None})
    except ValidationError as error:
        raise InvalidInputError(f"The server cannot be set up: {first_problem(error.errors())}.") from error
    generator = load_generator(model, profile, device, template=template, alpha=factor, keep_best=keep_best)
    generator.split = split_at(leaning, generator.profile)
    uvicorn.run(
        create_app(generator, settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=math.ceil(
            settings.seconds
        ),  # whoever has stopped reading does not keep the server from ending
    )
