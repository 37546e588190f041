"""LoRA adapters (Hu et al. 2021): low-rank changes of a model's projections, many of them in one batch.

::

    folder ──read, check──> AdapterFile ──load──> weights on the host ──copy──> a slot on the device
             adapter_file                adapters (LRU of max_cpu_loras)         slots (LRU of max_loras)

A request names an adapter; it is checked before the request is queued. The scheduler admits a request when
its adapter has a slot (`engine/adapter_turns.py`), and tells the runner with the plan which adapter to copy
where. Knows no torch: weights are whatever the runner makes of a file (`runtime/adapter_weights.py`).
"""
