"""Nearest neighbours of images: embed each image once, store its vector, and search with FAISS."""
