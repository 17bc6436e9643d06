"""The `qtune` command. main.py lists its commands."""

from __future__ import annotations

from qtune_service.cli.main import app, main

__all__ = ["app", "main"]
