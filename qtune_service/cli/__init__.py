"""The `qtune` command; see main.py."""

from __future__ import annotations

from qtune_service.cli.main import app, main

__all__ = ["app", "main"]
