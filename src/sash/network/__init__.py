"""The networks: configs, packed batches, the rolling buffer cache, the decoder and the Longformer encoder."""
