"""A client of the service for Python: typed, synchronous, and small.

It needs httpx and pydantic: no torch, ray or vllm, no pyarrow, and none of the server's libraries.
"""

from qtune_service.client.client import Client
from qtune_service.client.transfer import Transfer

__all__ = ["Client", "Transfer"]
