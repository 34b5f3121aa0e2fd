"""Policies tried out on landscapes: evolution without a daemon, and honest comparison of it."""
