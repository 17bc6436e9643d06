"""The vLLM engine: a pooling model that returns scores, its plug-in and its prefix cache."""
