"""The decoders of a run: the shared decoder with its teacher, one decoder per block, or none."""
