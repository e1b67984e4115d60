"""Pools of KV blocks and the generations of their slots, in host memory and on a device."""
