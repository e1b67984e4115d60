"""What the engine does on one NVIDIA GPU, beside the device's own limits and beside peers.

python -m bench.gpu [--toy]
"""
