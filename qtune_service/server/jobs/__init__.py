"""Jobs of the service: their states, their store, and how they are started. No torch, ray or vllm."""
