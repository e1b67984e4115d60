"""An H200's limits, and what is assumed where nothing has been measured. Estimates are marked."""

COPY_BYTES_PER_S = 4.3e12
"""What a copy reaches of 4.8 TB/s; of published measurements (field notes, section 2)."""
MATRIX_FLOPS_PER_S = 790e12
"""bf16 with float32 sums that cuBLAS reaches of 989; of published measurements."""
LATENCY_S = 700e-9
"""From a load to its bytes under load; with what is in flight it bounds the rate (Little)."""
GAP_S = 0.8e-6
"""Between two kernels of a captured graph without programmatic dependent launch; estimated."""
LEAST_S = 1.2e-6
"""Of a kernel that does next to nothing: start, one trip to memory, end; estimated."""
MULTIPROCESSORS = 132
CLOCK_HZ = 1.755e9
"""Without throttling, which long matrix products bring about."""
ISSUES = 4
"""Instructions of a warp that a multiprocessor issues in a cycle."""
REGISTERS = 65_536
SHARED_BYTES = 227 << 10
WARPS = 64
PROGRAMS = 32
"""Most of each that a multiprocessor has."""
CUBLAS_BYTES_SHARE = 0.78
"""Of the copy rate, at few rows; estimated (75 to 80 %)."""
OWN_BYTES_SHARE = 0.90
"""The same of `engine.ops.triton.linear`, which is off until measured; estimated."""
CUBLAS_FLOPS_SHARE = 0.95
"""Of the matrix rate inside a wave of tiles; estimated: with waves that are not full it gives the
88 % of the field notes' prefill."""
CUBLAS_TILE = (128, 128)
"""Rows and columns of a product's tile; estimated. Few rows are cut along their width as well."""
ISSUED_SHARE = 0.6
"""Of its issue slots, that attention's loop fills; estimated."""
