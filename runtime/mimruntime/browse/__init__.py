"""A page in the browser on images and their neighbours; needs the extra `browse`."""
