"""What every process does alike: settings, logs, metrics, health, signals, its place on the
machine."""
