"""Doing slides: planning, blocks, commits, executors and the driver that ties them."""
