"""The small trainable modules on hidden states."""
