"""Admission: connections, keys, size and time limits of bodies, and the bounded queue of images."""
