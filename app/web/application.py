"""The web application: routes and middleware put together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from app.web.contract import OPERATIONS
from app.web.docs import Docs
from app.web.edge import EDGE, ask_for_no_body
from app.web.guard import request_ids
from app.web.openapi import make_document
from app.web.page_frame import set_up_templates
from app.web.problems import problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.fields import Registry
    from app.web.edge import Edge
    from app.web.handlers import Calls
    from app.web.health import Health
    from app.web.metrics import Metrics
    from app.web.page import Page


def make_application(
    calls: Calls,
    health: Health,
    metrics: Metrics,
    page: Page,
    registry: Registry,
    *,
    edge: Edge,
    new_id: Callable[[], str],
    max_body_bytes: int,
) -> web.Application:
    application = web.Application(
        client_max_size=max_body_bytes, middlewares=[request_ids(new_id), edge.middleware(), problems]
    )
    application[EDGE] = edge
    docs = Docs(partial(make_document, OPERATIONS, registry))
    for route in (*calls.routes(), *health.routes(), *metrics.routes(), *docs.routes(), *page.routes()):
        if isinstance(route, web.RouteDef):
            route.kwargs["expect_handler"] = ask_for_no_body
        route.register(application.router)
    set_up_templates(application)
    return application
