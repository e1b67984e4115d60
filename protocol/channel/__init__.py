"""The links between routers and workers, over ZeroMQ: the only way that control messages take."""
