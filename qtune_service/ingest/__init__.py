"""Records in, Arrow shards out: reading, rendering, storage and the manifest."""
