"""A web page of images and their nearest neighbours; needs the extra `browse`."""
