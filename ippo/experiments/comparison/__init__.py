"""Arms x seeds: run every cell once, and say with intervals what differs."""
