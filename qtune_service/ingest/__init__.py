"""Find, parse and plan the input: files to records and shards."""
