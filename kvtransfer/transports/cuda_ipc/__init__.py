"""CUDA IPC within a host: the sink maps the source's pool and copies on the device."""
