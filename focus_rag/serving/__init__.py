"""Serve a FocusGenerator over HTTP, in the shape of the OpenAI API: `create_app` for any ASGI server, `ray_serve` for
Ray Serve.

Needs the extra `[serve]`.
"""
