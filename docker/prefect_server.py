"""Prefect's server as `prefect server start` runs it, minus what it would show to strangers.

Prefect asks for its login below ``/api`` only: the pages with its interface's description stay open
and any host name is answered. Both end here (S16); what is left without a login are the health
routes and the files of the web pages, which hold no data.
"""

import os
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse, Response

CLOSED = {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
ALWAYS = ("127.0.0.1", "localhost", "prefect")


def guarded_app() -> FastAPI:
    """Return the application without its description, answering to the names of this host only."""
    app = create_app(final=True)

    @app.middleware("http")
    async def hide(request: Request, call_next: RequestResponseEndpoint) -> Response:
        if request.url.path.rstrip("/") in CLOSED:
            return PlainTextResponse("Not found.", status_code=404)
        return await call_next(request)

    seen_by_browsers = urlsplit(get_current_settings().server.ui.api_url or "").hostname
    more = os.environ.get("COMPASS_PREFECT_HOSTS", "").split(",")
    hosts = {*ALWAYS, seen_by_browsers or "localhost", *filter(None, more)}
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=sorted(hosts))
    return app


if __name__ == "__main__":
    api = get_current_settings().server.api
    uvicorn.run(
        guarded_app(),
        host=api.host,
        port=api.port,
        timeout_keep_alive=api.keepalive_timeout,
        log_level="warning",
    )
