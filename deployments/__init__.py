"""The pools: models, memory, batches and engines. Knows nothing of HTTP, users or routes."""
