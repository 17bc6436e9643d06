"""Which server a client asks, and which token goes to it: arguments, environment, config file."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qtune_service.client import Client
from qtune_service.client.profiles import Profile, config_path, find_address, save_profile
from qtune_service.errors import (
    NotAllowedError,
    NotSignedInError,
    SettingsError,
)
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import open_database, upgrade
from tests.api.servers import scripted, serving, settings
from tests.api.test_client import job

pytestmark = pytest.mark.usefixtures("no_config")


def test_tokens(tmp_path: Path) -> None:
    """One is needed, and lets in by its scope; wrong and expired ones do not, and are not shown in the error."""
    guarded = settings(tmp_path, host="0.0.0.0")
    database = open_database(guarded.database)
    upgrade(database)
    store = TokenStore(database)
    _, good = store.create("ann", Scope.read)
    _, old = store.create("bob", Scope.read, datetime.now(UTC) - timedelta(days=1))
    database.dispose()
    with serving(guarded, scripted(tmp_path)) as made:
        url = str(made.base_url)
        with Client(url, good) as client:
            assert list(client.list()) == []
            with pytest.raises(NotAllowedError, match="scope submit"):
                client.submit(job(tmp_path))
            assert good not in repr(client.__dict__["_connection"].address)
        with Client(url) as client, pytest.raises(NotSignedInError) as caught:
            client.get("x")
        assert "QTUNE_TOKEN" in caught.value.hint
        for token in (old, "qtune_x_y"):
            with Client(url, token) as client, pytest.raises(NotSignedInError, match="not valid") as caught:
                client.get("x")
            assert token not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://", "http://ann:pw@x", "http://x:99999", "http://x?y"])
def test_what_is_no_servers_url(url: str) -> None:
    """Is refused before anything is sent."""
    with pytest.raises(SettingsError):
        Client(url)


def test_a_token_does_not_go_over_plain_http_to_others() -> None:
    """Unless that is said; this machine is no other, and a name that only looks like it is one."""
    with pytest.raises(SettingsError, match="could read") as caught:
        find_address("http://gpu-box:8420", "qtune_a_b")
    assert "qtune_a_b" not in str(caught.value)
    with pytest.raises(SettingsError, match="could read"):
        find_address("http://localhost.example.org", "qtune_a_b")
    assert find_address("http://gpu-box:8420", "qtune_a_b", plain_http=True).token == "qtune_a_b"
    for url in ("http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "https://gpu-box"):
        assert find_address(url, "qtune_a_b").token == "qtune_a_b"
    for token in ("", "two words", "line\r\nX-Evil: 1", "schlüssel"):
        with pytest.raises(SettingsError, match="the token is invalid"):
            find_address("http://localhost", token)


LAB, ELSEWHERE = "https://lab.example", "https://elsewhere.example"


@pytest.mark.parametrize(
    ("arguments", "environ", "url", "token"),
    [
        ({}, {}, LAB, "of-lab"),
        ({"url": f"{LAB}/"}, {}, LAB, "of-lab"),
        ({"url": ELSEWHERE}, {}, ELSEWHERE, None),
        ({"url": ELSEWHERE}, {"QTUNE_TOKEN": "t"}, ELSEWHERE, "t"),
        ({"url": ELSEWHERE}, {"QTUNE_TOKEN": "t", "QTUNE_URL": LAB}, ELSEWHERE, None),
        ({}, {"QTUNE_URL": ELSEWHERE}, ELSEWHERE, None),
        ({}, {"QTUNE_URL": ELSEWHERE, "QTUNE_TOKEN": "t"}, ELSEWHERE, "t"),
        ({"profile": "home"}, {"QTUNE_URL": ELSEWHERE, "QTUNE_TOKEN": "t"}, "http://localhost:1", None),
        ({"profile": "lab"}, {"QTUNE_TOKEN": "t"}, LAB, "of-lab"),
        ({"token": "given"}, {"QTUNE_TOKEN": "t"}, LAB, "given"),
    ],
)
def test_a_token_goes_to_the_server_it_was_given_for(
    tmp_path: Path, arguments: dict[str, Any], environ: Mapping[str, str], url: str, token: str | None
) -> None:
    """Arguments, a named profile, the environment, the default profile; no token with another server's URL."""
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    save_profile("home", Profile(url="http://localhost:1"), config_path(home))
    save_profile("lab", Profile(url=LAB, token="of-lab"), config_path(home))
    found = find_address(**arguments, environ={**home, **environ})
    assert (found.url, found.token) == (url, token)


def test_the_config_file_is_its_owners_alone(tmp_path: Path) -> None:
    """0600 when written; a warning, once, where somebody has opened it to others; errors do not show what it holds."""
    path = config_path({"XDG_CONFIG_HOME": str(tmp_path)})
    save_profile("lab", Profile(url=LAB, token='of-"lab"\\', plain_http=True), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_address(environ={"XDG_CONFIG_HOME": str(tmp_path)}).token == 'of-"lab"\\'
    path.chmod(0o644)
    with pytest.warns(UserWarning, match="chmod 600"):
        find_address(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    path.write_text('[profiles.lab]\nurl = "https://x"\ntokn = "secret"\n')
    with pytest.raises(SettingsError, match=r"profiles\.lab\.tokn") as caught:
        find_address(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="not a valid profile name"):
        save_profile("a b", Profile(url=LAB), tmp_path / "new.toml")
