"""UCX, for RDMA: tagged messages on a thread of its own."""
