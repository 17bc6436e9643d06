"""Where the sign-in page leads to, in a real browser: a page of this server, whatever the address says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtune_service.server.app import create_app
from qtune_service.server.dependencies import safe_redirect
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import open_database, upgrade
from tests.api.servers import scripted, settings
from tests.browser.sites import Site, open_page, running

FOREIGN = [
    "/.//evil.example/x",
    "/..//evil.example/x",
    "/%2e//evil.example/x",
    "/x/..//evil.example/x",
    "//evil.example/x",
    "/\\evil.example/x",
    "/.\\\\evil.example/x",
    "/\t/evil.example/x",
    "https://evil.example/x",
    "https:evil.example",
    "javascript:alert(1)",
    "blob:http://evil.example/x",
    "http://[",
    "data:text/html,x",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """Yield a site that requires tokens, and a token."""
    folder: Path = tmp_path_factory.mktemp("server")
    database = open_database(f"sqlite:///{folder}/qtune.db")
    upgrade(database)
    _, token = TokenStore(database).create("ann", Scope.read)
    with running(lambda: create_app(settings(folder, require_tokens=True), scripted(folder))) as made:
        yield made, token


@pytest.mark.parametrize("to", FOREIGN)
def test_signing_in_leads_to_no_other_site(browser: Any, site: tuple[Site, str], to: str) -> None:
    """Every request of the browser is for this server, and the page that it ends at is one of its own."""
    server, token = site
    page, seen = open_page(browser, f"{server.url}/sign-in")
    try:
        foreign: list[str] = []

        def refuse(route: Any) -> None:
            foreign.append(route.request.url)
            route.abort()

        page.route(re.compile(r"^https?://[^/]*evil"), refuse)
        page.goto(f"{server.url}/sign-in?{page.evaluate('to => new URLSearchParams({next: to}).toString()', to)}")
        page.fill("[name=token]", token)
        with page.expect_navigation(url=re.compile("^(?!.*/sign-in)")):
            page.press("[name=token]", "Enter")
        assert page.url.startswith(f"{server.url}/")
        assert [url for url in seen.requests if not url.startswith((server.url, "data:"))] == foreign == []
    finally:
        page.context.close()


def test_the_servers_own_redirects_are_local() -> None:
    """The same texts on the server's side; and what is local stays as it is."""
    assert {text: safe_redirect(text) for text in FOREIGN} == dict.fromkeys(FOREIGN, "/")
    for text in ("/", "/jobs/1?a=b", "/?status=failed&q=a", "/jobs/1#log"):
        assert safe_redirect(text) == text
