"""A collection of images becomes a folder of shards, here or on a cluster, and a job that was killed goes on."""
