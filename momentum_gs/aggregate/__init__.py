"""Models of blocks that are compressed, sent and aggregated: devices, edges and the cloud (docs/aggregation.md)."""
