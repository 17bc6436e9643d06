"""`qtune migrate`, and servers that leave the schema to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtune_service.errors import DatabaseError
from qtune_service.server.app import make_server
from qtune_service.server.jobs.database import check_schema, head, open_database
from tests.api.servers import settings
from tests.jobs import qtune


def test_one_migrates_and_servers_check(tmp_path: Path) -> None:
    """A server that may not upgrade refuses a database without schema, and says by what it gets one."""
    checking = settings(tmp_path, migrate_at_start=False)
    with pytest.raises(DatabaseError, match="schema none") as caught:
        make_server(checking)
    assert "qtune migrate" in caught.value.hint
    env = {"QTUNE_DATABASE_URL": checking.database, "QTUNE_DATA_ROOT": str(tmp_path), "QTUNE_MIGRATE_AT_START": "false"}
    refused = qtune("token", "list", env=env)
    assert (refused.returncode, "qtune migrate" in refused.stderr) == (4, True)
    assert qtune("migrate", env=env).stdout == f"schema {head()}, was none\n"
    assert qtune("migrate", env=env).stdout == f"schema {head()}, as before\n"
    check_schema(open_database(checking.database))
    make_server(checking)
