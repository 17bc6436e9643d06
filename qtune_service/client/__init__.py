"""Python client of the service: typed, synchronous, and small.

It depends on httpx and pydantic. It needs no torch, ray, vllm or pyarrow, and none of the server's libraries.
"""

from qtune_service.client.client import Client
from qtune_service.client.transfer import Transfer

__all__ = ["Client", "Transfer"]
