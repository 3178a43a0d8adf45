"""Who is let in: connections, keys, bodies within size and time, and the bounded queue of images."""
