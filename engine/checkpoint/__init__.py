"""From a checkpoint's files to weights: names, shards, formats, and what each parameter takes."""
