"""What prefill and decode workers share: a process, and the requests on its engine."""
