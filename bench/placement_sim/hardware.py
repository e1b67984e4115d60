"""What the simulated workers are made of: the seconds of a step, the bytes of a token, a link."""

from dataclasses import dataclass

from protocol.layout import KvLayout
from protocol.messages import StepModel

LLAMA2_70B_H100 = StepModel(fixed_s=0.028, token_s=9.5e-5, attended_s=6.6e-10, sequence_s=3.2e-4)
"""Llama-2-70B on 8 H100, tensor parallel 8. `attended_s` is arithmetic: 2.6 MFLOP a pair at half of
the peak. The others fit what Splitwise measured (shared trace `profiles/splitwise_perf_model`): a
prompt of 4,096 and of 8,192 tokens, 64 of 512 (390, 845, 2,936 ms), a step of batch 1 and of batch
64 (30, 50 ms), each within 8 %; a prompt of 2,048 takes 137 ms there and 223 here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of worker for both roles; `num_blocks` None: memory for whatever comes."""

    step: StepModel = LLAMA2_70B_H100
    block_tokens: int = 512
    num_blocks: int | None = None
    prefill_step_tokens: int = 8192
    decode_step_tokens: int = 512
    """A prompt on a decode worker goes in chunks that keep a step below 80 ms."""
    bytes_per_s: float = 87e9
    """Each way: what Mooncake measured between nodes of 8 GPUs with four cards of 200 Gb/s."""
    latency_s: float = 0.01
    """Of a fetch, whatever its size."""
    message_s: float = 0.001
    """Router to worker and back, each way."""
    event_s: float = 0.005
    """From a block's change to the routers' index."""
    report_s: float = 0.05
    """A changed load is told so soon."""

    @property
    def layout(self) -> KvLayout:
        """Of Llama-2-70B: 320 KiB a token."""
        return KvLayout(
            num_layers=80,
            num_kv_heads=8,
            head_dim=128,
            block_tokens=self.block_tokens,
            dtype="bfloat16",
        )

    @property
    def token_bytes(self) -> int:
        return self.layout.token_bytes

    def step_s(self, *, num_tokens: float, num_attended: float, num_sequences: int) -> float:
        model = self.step
        prompt_s = model.token_s * num_tokens + model.attended_s * num_attended
        return model.fixed_s + prompt_s + model.sequence_s * num_sequences

    def prefill_s(self, *, num_tokens: int, num_cached: int) -> float:
        """A prompt alone on a prefill worker."""
        left = max(1, num_tokens - num_cached)
        num_steps = -(-left // self.prefill_step_tokens)
        attended = (num_tokens**2 - (num_tokens - left) ** 2) / 2
        model = self.step
        return num_steps * model.fixed_s + model.token_s * left + model.attended_s * attended
