"""What an encoded image will take to decode, known before Pillow reads it, and the memory that decoders share."""
