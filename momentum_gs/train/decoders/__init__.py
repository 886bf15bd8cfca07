"""Who decodes a block: the shared decoder and its teacher, one decoder per block, or none."""
