"""Datasets and previews as the contract has them, in memory, until the parts that bring them are in."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

SAMPLES = [
    {
        "id": "0000-00000001", "text": "<|im_start|>user\nWhy?<|im_end|>\nBecause.<|im_end|>",
        "tokens": ["<|im_start|>", "user", "\n", "Why", "?", "<|im_end|>", "\n", "Because", ".", "<|im_end|>"],
        "token_ids": [1, 9, 3, 7, 8, 2, 3, 5, 6, 2], "loss_mask": [0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
        "num_tokens": 10, "num_trained": 3,
    }
]  # fmt: skip


def add_standins(app: FastAPI) -> FastAPI:
    """To an app."""
    stored: dict[str, dict[str, Any]] = {}

    @app.post("/api/v1/datasets", status_code=201)
    async def upload(request: Request, name: str) -> Any:
        size, digest = 0, hashlib.sha256()
        async for block in request.stream():
            size += len(block)
            digest.update(block)
            await asyncio.sleep(0.05)
        if not name.endswith((".jsonl", ".gz")):
            return JSONResponse(
                {"title": "x", "status": 422, "code": "data", "detail": f"{name}: no known format", "hint": "Use JSONL."},
                status_code=422,
                media_type="application/problem+json",
            )
        stored[name] = {
            "id": f"d{len(stored)}", "name": name, "size_bytes": size, "sha256": digest.hexdigest(),
            "format": "jsonl", "rows": 3, "created_at": datetime.now(UTC).isoformat(), "owner": "local",
            "uri": f"dataset://d{len(stored)}",
        }  # fmt: skip
        return stored[name]

    @app.get("/api/v1/datasets")
    def datasets() -> dict[str, Any]:
        return {"datasets": list(stored.values()), "next_cursor": None}

    @app.post("/api/v1/preview")
    def preview() -> dict[str, Any]:
        rejected = [{"reason": "empty_response", "hint": "The answer has no text.", "source": "a.jsonl", "line": 2}]
        return {"samples": SAMPLES, "rejected": rejected, "warnings": ["Answers are short."]}

    return app
