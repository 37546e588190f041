"""A real asynchronous fault of the device: the step is named, everybody is told, close() works.

In a process of its own, for a CUDA context that has failed once fails for good.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

PROGRAM = """
import sys
import torch
from workbench import LLM, SamplingParams
from workbench.runtime.kernel_runner import KernelRunner

overlapped = sys.argv[1] == "overlapped"
llm = LLM(device="cuda", kv_cache_memory_bytes=1 << 28, max_num_seqs=8, async_scheduling=overlapped)
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
llm.generate("The owl", params, use_tqdm=False)
launch = KernelRunner.launch
bad = torch.full((1,), 1 << 40, device="cuda")
table = torch.zeros(8, device="cuda")

def faulty(self, plan):
    ticket = launch(self, plan)
    if plan.index == 15:
        table[bad]  # an index out of bounds, found out by the device when it gets there
    return ticket

KernelRunner.launch = faulty
outputs = llm.generate(["The owl", "A fox"], params, use_tqdm=False)
print("reasons", {o.outputs[0].finish_reason for o in outputs})
try:
    llm.generate("The owl", params, use_tqdm=False)
except RuntimeError as error:
    print("refused:", error)
llm.close()
print("closed")
"""


@pytest.mark.parametrize("driven", ["overlapped", "synchronous"])
def test_a_fault_ends_the_engine_and_close_works(driven: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, driven], capture_output=True, text=True, timeout=300
    )
    said = done.stdout
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reasons {'error'}" in said
    assert "refused: the device failed while step 1" in said, said
    assert "close() it" in said
    assert said.rstrip().endswith("closed")
