"""Raw data sets, shards, the batch plan and the stream of batches."""
