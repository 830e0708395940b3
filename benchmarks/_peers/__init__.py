"""The peers: each runs in its own environment, as a process that takes orders line by line."""
