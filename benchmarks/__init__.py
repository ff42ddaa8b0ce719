"""Speed and quality against the peers: each module is a command that prints a table and writes JSON."""
