"""The service over HTTP: REST, web page, metrics. No torch, ray or vllm."""
