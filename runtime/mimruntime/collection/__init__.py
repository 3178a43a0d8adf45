"""Embed a collection of images into a folder of shards, locally or on a cluster; a killed job can be resumed."""
