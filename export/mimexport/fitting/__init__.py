"""Learning on top of a frozen backbone: tokens once, then a head, with labels or without."""
