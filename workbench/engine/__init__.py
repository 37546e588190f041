"""The engine: requests, plans, results and the loop between them. Knows nothing of tensors."""
