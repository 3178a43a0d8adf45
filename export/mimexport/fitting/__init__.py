"""Learn heads on a frozen backbone: compute tokens once, then fit with or without labels."""
