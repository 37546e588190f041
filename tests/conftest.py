"""What every test stands on: no network, no deadline for property tests. GPU tests run with `-m gpu` only."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before anything imports transformers or torch: no network, and threads that do not spin while they wait,
# which on shared cores costs tenfold.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Two shared cores stall at times; a deadline would turn that into a failure.
settings.register_profile("workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workbench")

# Without a GPU, kernels run through triton's interpreter, which triton asks for once, while it is imported;
# and many a module imports triton.
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
