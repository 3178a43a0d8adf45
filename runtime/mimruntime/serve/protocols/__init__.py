"""What is spoken over HTTP: a router for each protocol, and the bodies that it reads and writes."""
