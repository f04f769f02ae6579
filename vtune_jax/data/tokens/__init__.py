"""What lies on disk: memory maps, ArrayRecord shards, rows, packing, the prepared corpus."""
