"""The paged KV cache's bookkeeping: keys, blocks, who holds them. Knows nothing of tensors."""
