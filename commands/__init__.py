"""What the commands of `videollm-mod` share."""
