"""Store and run the jobs of the service. The modules import neither torch, ray nor vllm."""
