"""Nearest neighbours of images: what is embedded once is kept, indexed by FAISS and searched."""
